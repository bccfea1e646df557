"""What all HTML pages share: the base template, the style, macros and rendering."""

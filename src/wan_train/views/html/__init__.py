"""What all HTML pages share: the base template, the style, macros, and how a template becomes a page."""

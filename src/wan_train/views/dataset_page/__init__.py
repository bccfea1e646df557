"""A page for the browser that shows what will be trained."""

"""What will be trained, as one page to look at in a browser."""

"""The story of a run, as one page to look at in a browser and as one JSON value."""

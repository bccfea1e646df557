"""Reports and comparisons of runs, as HTML pages and as JSON. Their templates are beside the modules."""

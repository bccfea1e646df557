"""Speed settings measured on this machine's own card: which candidates, in which order, and the measuring itself."""

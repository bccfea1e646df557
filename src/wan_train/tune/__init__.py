"""Measures speed settings on this machine's own card: the candidates, their order and the measurement."""

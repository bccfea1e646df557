"""Views of a run for people and scripts: pure renderings of its records."""

"""Results put where they outlive the box: what is due, the two kinds of places, records of what was verified there."""

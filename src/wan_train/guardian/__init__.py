"""The guardian: one process of a box that does what comes after training, and restarts dead supervisors."""

"""The one process of a box that cares for what comes after training. It never trains."""

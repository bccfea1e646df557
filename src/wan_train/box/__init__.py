"""The rented machine: what an hour of it costs, when its rental ends, its provider's API."""

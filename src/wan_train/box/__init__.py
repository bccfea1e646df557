"""The rented machine: what an hour of it costs, when its rental ends, how to ask its landlord."""

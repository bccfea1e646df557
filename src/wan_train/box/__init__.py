"""The rented box: its hourly price, the end of its rental, its provider's API."""

"""Rents boxes from a computer without a GPU, trains there, brings the LoRAs home, leaves nothing that costs money."""

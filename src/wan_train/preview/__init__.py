"""Previews: pictures of both LoRAs together, epoch by epoch, drawn by the trainer's own code."""

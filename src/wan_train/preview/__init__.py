"""Pictures of both LoRAs together, epoch by epoch: chosen, drawn by the trainer's own code, kept."""

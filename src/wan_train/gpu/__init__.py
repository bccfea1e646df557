"""GPUs as NVML sees them, and who on this box holds which."""

"""GPUs as NVML reports them, and who on this box holds each."""

"""The networks; no training, no offload, no config."""

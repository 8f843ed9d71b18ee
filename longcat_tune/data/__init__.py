"""Clip on disk to batch; knows nothing of networks."""

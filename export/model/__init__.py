"""Weights in: sources, checkpoints, model families, loading."""

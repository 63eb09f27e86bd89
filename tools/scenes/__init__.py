"""Drawn scenes with exact masks, for training, measurements, tests and pictures."""

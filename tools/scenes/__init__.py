"""Scenes drawn for training, tests and pictures."""

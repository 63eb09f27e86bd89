"""Inference libraries: one module each."""

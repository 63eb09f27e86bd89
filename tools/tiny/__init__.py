"""Training of the embedded engine's model."""

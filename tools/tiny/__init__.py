"""Training the embedded engine."""

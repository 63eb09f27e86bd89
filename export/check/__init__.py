"""An engine against PyTorch, and engines against each other."""

"""Comparisons with PyTorch: attention maps, labels, and how far two label maps agree."""

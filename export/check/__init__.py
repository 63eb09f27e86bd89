"""Comparisons with PyTorch: attention maps, features, labels, and how far two label maps agree."""

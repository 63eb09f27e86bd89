"""`python -m tools.evaluate`: segmentations against known truth."""

"""Evaluation of segmentations on data sets with ground truth: `python -m tools.evaluate DATASET ROOT`."""

"""Other programs that use the segmenter: annotators."""

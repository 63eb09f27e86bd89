"""The segmenter as an HTTP service with a page: `diffseg serve`."""

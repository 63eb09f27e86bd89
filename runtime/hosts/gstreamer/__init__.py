"""The GStreamer element `diffseg`: `python/` is what GStreamer loads, `filter.py` what the element does with frames."""

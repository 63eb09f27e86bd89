"""Engines: files that map frames to attention or labels, and what runs them."""

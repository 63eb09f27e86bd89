"""The modules that are traced into an engine."""

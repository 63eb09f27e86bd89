"""Evidence that the runtime neither crashes, hangs, leaks nor loses work."""

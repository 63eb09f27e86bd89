"""Fuzzing of the readers of untrusted inputs."""

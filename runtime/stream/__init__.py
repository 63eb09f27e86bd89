"""Stages that overlap: sources in, results out."""

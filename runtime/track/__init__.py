"""Identities from frame to frame: motion, tracks, tracker."""

"""Identities from frame to frame, under their public name."""

from runtime.track.tracker import Tracker, TrackerConfig

__all__ = ["Tracker", "TrackerConfig"]

"""The frame under its segments' colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.outputs.draw import draw_overlay
from runtime.outputs.sinks import PictureSink

if TYPE_CHECKING:
    from runtime.outputs.form import ClipForm
    from runtime.outputs.sinks import Sink
    from runtime.outputs.target import Target


def picture(target: Target) -> Sink:
    """`<stem>_overlay.png`."""
    return PictureSink(target.path("_overlay.png"), draw_overlay)


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_overlay.mp4`, with the clip's own times and sound."""
    from runtime.outputs.apart import open_movie

    return open_movie(target.path("_overlay.mp4"), form, warn, draw_overlay)

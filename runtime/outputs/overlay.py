"""The frame under its segments' colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.outputs.draw import draw_overlay
from runtime.outputs.sinks import PictureSink

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.outputs.form import ClipForm
    from runtime.outputs.sinks import Sink


def picture(stem: Path) -> Sink:
    """`<stem>_overlay.png`."""
    return PictureSink(stem.with_name(f"{stem.name}_overlay.png"), draw_overlay)


def clip(stem: Path, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_overlay.mp4`, with the clip's own times and sound."""
    from runtime.outputs.movie import VideoSink

    return VideoSink(stem.with_name(f"{stem.name}_overlay.mp4"), form, warn, draw_overlay)

"""The frame under its segments' colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.outputs.draw import draw_overlay
from runtime.outputs.png import encode_png
from runtime.outputs.sinks import PictureSink

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.outputs.form import ClipForm
    from runtime.outputs.sinks import Sink
    from runtime.outputs.target import Target
    from runtime.words import Names


def picture(target: Target) -> Sink:
    """`<stem>_overlay.png`."""
    return OverlaySink(target.path("_overlay.png"), draw_overlay)


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_overlay.mp4`, with the clip's own times and sound."""
    from runtime.outputs.apart import open_movie

    return open_movie(target.path("_overlay.mp4"), form, warn, draw_overlay)


class OverlaySink(PictureSink):
    """One PNG, with the segments' words where they have them."""

    def prepare_named(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None,
        names: Names | None,
    ) -> bytes:
        """The file's content."""
        return encode_png(draw_overlay(frame, labels, colours=colours, names=names))

"""The segments' colours alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.outputs.draw import paint
from runtime.outputs.sinks import PictureSink

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.outputs.form import ClipForm
    from runtime.outputs.sinks import Sink
    from runtime.outputs.target import Target
    from runtime.words import Names


def picture(target: Target) -> Sink:
    """`<stem>_segments.png`."""
    return PictureSink(target.path("_segments.png"), _painted, flat=True)


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_segments.mp4`, with the clip's own times and sound."""
    from runtime.outputs.apart import open_movie

    return open_movie(target.path("_segments.mp4"), form, warn, _painted)


def _painted(
    frame: NDArray[np.uint8],
    labels: NDArray[np.int32],
    *,
    colours: NDArray[np.uint8] | None,
    names: Names | None,
) -> NDArray[np.uint8]:
    return paint(labels, colours)

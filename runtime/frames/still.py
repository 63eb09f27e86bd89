"""A photograph: read as a frame, or as a clip of one frame."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from threading import Event
from typing import TYPE_CHECKING

from runtime.frames.clip import Clip, Picture
from runtime.frames.decode import decode_frame, read_frame

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.frames.source import OpenOptions, Source


def read_still(source: Source) -> NDArray[np.uint8]:
    """The frame of a source of kind image: uint8 [H, W, 3] BGR. Raises DiffSegError when it cannot be read."""
    return read_frame(source.path) if source.data is None else decode_frame(source.data, source.name)


class StillClip(Clip):
    """A photograph as a clip of one frame at time 0. The file is read by `read`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.name)
        self._source = source

    def read(self, stop: Event) -> Iterator[Picture]:
        """The one frame. Raises DiffSegError when it cannot be read."""
        yield Fraction(0), read_still(self._source)


def open_image(source: Source, options: OpenOptions) -> Clip:
    """Open a source of kind image."""
    return StillClip(source)

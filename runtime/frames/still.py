"""A photograph: read as a frame, or as a clip of one frame."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from threading import Event
from typing import TYPE_CHECKING

from runtime.frames.clip import Clip, Picture
from runtime.frames.decode import decode_frame, read_frame
from runtime.frames.formats import pixels_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.frames.source import OpenOptions, Source


HEAD = 1 << 18  # bytes in which a picture says its size, as a rule
GUESS = 4  # pixels a byte, where it does not


class Still:
    """A photograph that is not read yet."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def pixels(self) -> int:
        """How many it will have, by its first bytes; a guess by its length where they do not say; 0 for no file."""
        data, path = self._source.data, self._source.path
        try:
            if data is not None:
                return pixels_of(data[:HEAD]) or GUESS * len(data)
            if not path.is_file():
                return 0
            with path.open("rb") as file:
                return pixels_of(file.read(HEAD)) or GUESS * path.stat().st_size
        except (OSError, ValueError):
            return 0

    def read(self) -> NDArray[np.uint8]:
        """The frame, uint8 [H, W, 3] BGR. Raises DiffSegError when it cannot be read."""
        return read_still(self._source)


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

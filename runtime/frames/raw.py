"""Raw frames on standard input."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from runtime.frames.clip import Clip, Picture

if TYPE_CHECKING:
    pass


class RawClip(Clip):
    """Raw BGR frames, 8 bits, one after the other without header, on standard input."""

    def __init__(self, size: tuple[int, int], rate: Fraction) -> None:
        super().__init__("standard input")
        self._width, self._height = size
        self.rate, self.tick = rate, 1 / rate

    def read(self, stop: Event) -> Iterator[Picture]:
        """Frames until standard input ends; a last one that is cut short is lost."""
        length = self._width * self._height * 3
        number = 0
        while not stop.is_set():
            data = bytearray(length)
            view, filled = memoryview(data), 0
            while filled < length:
                # Straight from the descriptor: a thread that waits in sys.stdin would hold its lock at exit.
                chunk = os.read(0, min(length - filled, 1 << 20))
                if not chunk:
                    break
                view[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
            if filled < length:
                if filled:
                    self.lost.append(
                        f"the last frame is cut short ({filled} of {length} bytes); is --size {self._width}x"
                        f"{self._height} right?"
                    )
                return
            yield number * self.tick, np.frombuffer(data, np.uint8).reshape(self._height, self._width, 3)
            number += 1

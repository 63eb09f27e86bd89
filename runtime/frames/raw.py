"""Standard input: raw frames, or one encoded picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import DiffSegError, UsageError
from runtime.frames.clip import DEFAULT_RATE, Clip, Picture
from runtime.frames.limits import check_pixels

if TYPE_CHECKING:
    from runtime.frames.source import OpenOptions, Source

STDIN = 0  # the descriptor: a thread that waits in sys.stdin would hold its lock when the program ends
CHUNK = 1 << 20
LARGEST = 1 << 30  # bytes of an encoded picture
NEEDS_SIZE = "raw frames on standard input need --size WIDTHxHEIGHT; they are 8-bit BGR"


class RawClip(Clip):
    """Raw BGR frames of 8 bits on standard input, one after the other without a header."""

    def __init__(self, size: tuple[int, int], rate: Fraction) -> None:
        """`size`: width and height in pixels. `rate`: frames per second."""
        super().__init__("standard input")
        self._width, self._height = size
        self.rate, self.tick = rate, 1 / rate

    def read(self, stop: Event) -> Iterator[Picture]:
        """Frames until standard input ends. A last frame that is cut short is left out."""
        length = self._width * self._height * 3
        number = 0
        while not stop.is_set():
            data = _read(length)
            if len(data) < length:
                if data:
                    self.lost.append(
                        f"the last frame is cut short ({len(data)} of {length} bytes); is --size {self._width}x"
                        f"{self._height} right?"
                    )
                return
            yield number * self.tick, np.frombuffer(data, np.uint8).reshape(self._height, self._width, 3)
            number += 1


def open_stdin(source: Source, options: OpenOptions) -> Clip:
    """Open a source of kind stdin. Raises UsageError when the options have no size."""
    if options.size is None:
        raise UsageError(f"-: {NEEDS_SIZE}")
    check_pixels(options.size[0] * options.size[1], f"--size {options.size[0]}x{options.size[1]}")
    return RawClip(options.size, options.rate or DEFAULT_RATE)


def settle_stdin(source: Source, options: OpenOptions) -> Source:
    """Without a size, standard input must be one encoded picture: the source of kind image that holds it.

    Raises UsageError when it is something else, and DiffSegError when it cannot be read.
    """
    from runtime.frames.formats import HEAD, encoded_picture

    if options.size is not None:
        return source
    if os.isatty(STDIN):
        raise UsageError("-: expected a picture or raw frames from another program, found a terminal; pipe them in")
    try:
        head = _read(HEAD)
        if not encoded_picture(bytes(head)):
            if not head:
                raise UsageError("-: standard input is empty; pipe in a picture, or raw frames with --size")
            raise UsageError(f"-: is not a picture of a known format; {NEEDS_SIZE}")
        data = bytes(head + _read(LARGEST - HEAD))
    except OSError as error:
        raise DiffSegError(f"-: standard input cannot be read ({error.strerror})") from None
    if len(data) == LARGEST:
        raise DiffSegError(f"-: expected one picture on standard input, found more than {LARGEST >> 20} MB")
    return replace(source, path=Path("stdin"), kind="image", address="stdin", data=data)


def _read(length: int) -> bytearray:
    """The next bytes of standard input: `length` of them, or fewer at its end."""
    data = bytearray()
    while len(data) < length and (chunk := os.read(STDIN, min(length - len(data), CHUNK))):
        data += chunk
    return data

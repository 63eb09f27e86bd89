"""Numbered pictures as a clip."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError
from runtime.files import is_own_output
from runtime.frames.clip import DEFAULT_RATE, Clip, Picture
from runtime.frames.decode import Scale, read_frame

if TYPE_CHECKING:
    from runtime.frames.source import OpenOptions, Source


class PictureClip(Clip):
    """Numbered pictures, `frames/%06d.png`: all that exist, in the order of their numbers."""

    gaps = True  # for a picture that cannot be read

    def __init__(self, pattern: Path, rate: Fraction) -> None:
        """Find the pictures. `pattern`: has `%d` or `%04d` in its last part. `rate`: frames per second.

        Raises DiffSegError when there are none, or the folder cannot be read.
        """
        super().__init__(str(pattern))
        self._paths = numbered_pictures(pattern)
        self.rate, self.tick = rate, 1 / rate
        self.seconds = float(len(self._paths) / rate)

    def read(self, stop: Event) -> Iterator[Picture]:
        """One frame for each picture. One that cannot be read is left out; the next keeps its time.

        Values of more than 8 bits are read by one scale for the whole clip (`runtime.frames.decode.Scale`).
        """
        scale = Scale()
        for number, path in enumerate(self._paths):
            if stop.is_set():
                return
            try:
                image = read_frame(path, scale)
            except DiffSegError as error:
                self.lost.append(str(error))
                continue
            yield number * self.tick, image


def numbered_pictures(pattern: Path) -> list[Path]:
    """The pictures that a pattern such as `frames/%06d.png` names, in the order of their numbers.

    Raises DiffSegError when there are none, or the folder cannot be read.
    """
    before, digits, after = re.split(r"%(?:0?(\d+))?d", pattern.name)
    least = int((digits or "").lstrip("0")[:4] or 1)  # no name has as many digits as could not be counted
    shape = re.compile(rf"{re.escape(before)}(\d{{{least},}}){re.escape(after)}")
    try:
        numbered = [(shape.fullmatch(path.name), path) for path in pattern.parent.iterdir()]
    except OSError as error:
        raise DiffSegError(f"{pattern}: cannot be read ({error.strerror})") from None
    found = sorted((int(match[1]), path) for match, path in numbered if match)
    paths = [path for _, path in found if not is_own_output(path)]
    if not paths:
        reason = "only pictures that this program wrote" if found else "no picture of that name and number"
        raise DiffSegError(f"{pattern}: {reason}")
    return paths


def open_sequence(source: Source, options: OpenOptions) -> Clip:
    """Open a source of kind sequence. Raises DiffSegError when there are no pictures of that name."""
    return PictureClip(source.path, options.rate or DEFAULT_RATE)

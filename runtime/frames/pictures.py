"""Numbered pictures as a clip."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError
from runtime.frames.clip import Clip, Picture

if TYPE_CHECKING:
    pass


class PictureClip(Clip):
    """Numbered pictures, `frames/%06d.png`: all that exist, in the order of their numbers."""

    def __init__(self, pattern: Path, rate: Fraction) -> None:
        super().__init__(str(pattern))
        from runtime.files import is_own_output

        parts = split_pattern(pattern.name)
        assert parts is not None
        before, digits, after = parts
        shape = re.compile(rf"{re.escape(before)}(\d{{{digits or 1},}}){re.escape(after)}")
        try:
            numbered = [(shape.fullmatch(path.name), path) for path in pattern.parent.iterdir()]
        except OSError as error:
            raise DiffSegError(f"{pattern}: cannot be read ({error.strerror})") from None
        found = sorted((int(match[1]), path) for match, path in numbered if match)
        self._paths = [path for _, path in found if not is_own_output(path)]
        if not self._paths:
            reason = "only pictures that this program wrote" if found else "no picture of that name and number"
            raise DiffSegError(f"{pattern}: {reason}")
        self.rate, self.tick = rate, 1 / rate
        self.seconds = float(len(self._paths) / rate)

    def read(self, stop: Event) -> Iterator[Picture]:
        """One frame for each picture; one that cannot be read is left out, and its time passes."""
        from runtime.frames.decode import read_frame

        for number, path in enumerate(self._paths):
            if stop.is_set():
                return
            try:
                image = read_frame(path)
            except DiffSegError as error:
                self.lost.append(str(error))
                continue
            yield number * self.tick, image


def split_pattern(name: str) -> tuple[str, int, str] | None:
    """`shot_%04d.png` → ("shot_", 4, ".png"); None where a name has no place for a number."""
    match = re.fullmatch(r"([^%]*)%(?:0?(\d+))?d([^%]*)", name)
    return (match[1], int(match[2] or 0), match[3]) if match else None

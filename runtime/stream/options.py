"""Options of the command line that speak of clips: from text to values, or one line that says what was expected."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from fractions import Fraction

from runtime.errors import DiffSegError


@dataclass(frozen=True, slots=True)
class ClipOptions:
    """How a clip is segmented.

    Attributes:
        start, end: part of the clip in seconds; `end` None: all that is left.
        every: the engine sees every so many frames; between them labels are carried along the optical flow.
        skip_similar: a frame like the last one segmented takes over its labels.
        temporal: labels are identities that stay with their objects; False: every frame by itself.
        warm_start: with `temporal`, the proposals of the last frame stand in for part of the anchors, which saves half
            of the merge.
        size, rate: width and height, and frames per second, of raw frames and numbered pictures.
        reconnect: open a camera or stream again when it drops.
        show: show the overlay in a window.
    """

    start: Fraction = Fraction(0)
    end: Fraction | None = None
    every: int = 1
    skip_similar: bool = False
    warm_start: bool = False
    temporal: bool = True
    size: tuple[int, int] | None = None
    rate: Fraction | None = None
    reconnect: bool = False
    show: bool = False

    def given(self) -> list[str]:
        """Names of the options that differ from their defaults, as on the command line."""
        default = ClipOptions()
        return [
            f"--{field.name.replace('_', '-')}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(default, field.name)
        ]


def parse_options(
    *,
    start: str,
    end: str | None,
    every: int,
    skip_similar: bool,
    warm_start: bool,
    temporal: str,
    reconnect: bool,
    show: bool,
    size: str | None,
    rate: str | None,
) -> ClipOptions:
    """The options as values. Raises DiffSegError naming the one that is wrong."""
    begin = _time(start, "--start")
    finish = None if end is None else _time(end, "--end")
    if finish is not None and finish <= begin:
        raise DiffSegError(f"--end: expected a time after --start {start}, found {end}")
    if every < 1:
        raise DiffSegError(f"--every: expected a whole number of frames from 1, found {every}")
    if temporal not in ("on", "off"):
        raise DiffSegError(f"--temporal: expected on or off, found {temporal!r}")
    return ClipOptions(
        start=begin,
        end=finish,
        every=every,
        skip_similar=skip_similar,
        warm_start=warm_start,
        temporal=temporal == "on",
        size=None if size is None else _size(size),
        rate=None if rate is None else _rate(rate),
        reconnect=reconnect,
        show=show,
    )


def _time(text: str, option: str) -> Fraction:
    match = re.fullmatch(r"(?:(?:(\d{1,9}):)?(\d{1,9}):)?(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})", text.strip(), re.ASCII)
    if not match:
        raise DiffSegError(f"{option}: expected seconds or h:m:s, such as 12.5 or 1:02:03, found {text!r}")
    hours, minutes, seconds = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + Fraction(seconds)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", text.strip())
    if not match or "0" in (match[1].strip("0") or "0", match[2].strip("0") or "0"):
        raise DiffSegError(f"--size: expected width x height in pixels, such as 640x360, found {text!r}")
    return int(match[1]), int(match[2])


def _rate(text: str) -> Fraction:
    # No exponents: Fraction would write 1e99999999 out.
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})|\d{1,9}(\.\d{0,9})?|\.\d{1,9}", text.strip(), re.ASCII)
    rate = Fraction(text.strip()) if match and match[2] != "0" * len(match[2] or "-") else Fraction(0)
    if not 0 < rate <= 1000:
        raise DiffSegError(f"--rate: expected frames per second, such as 30 or 30000/1001, found {text!r}")
    return rate.limit_denominator(10**6)

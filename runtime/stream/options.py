"""Options of the command line that speak of clips: from text to values, or one line that says what was expected."""

from __future__ import annotations

import re
from fractions import Fraction

from runtime.errors import DiffSegError
from runtime.outputs.registry import KINDS
from runtime.stream.clip import ClipOptions


def parse_save(text: str) -> list[str]:
    """`overlay,labels` → ["overlay", "labels"]; `none` → []."""
    kinds = list(dict.fromkeys(kind.strip() for kind in text.split(",") if kind.strip()))
    if kinds == ["none"]:
        return []
    if not kinds or not set(kinds) <= {*KINDS, "archive"}:
        raise DiffSegError(f"--save: expected some of {', '.join(KINDS)}, archive, or none, found {text!r}")
    return kinds


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
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)", text.strip())
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
    try:
        rate = Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise DiffSegError(f"--rate: expected frames per second, such as 30 or 30000/1001, found {text!r}")
    return rate.limit_denominator(10**6)

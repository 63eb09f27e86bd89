"""Where tiles are."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from runtime.errors import DiffSegError, UsageError

OVERLAP = 0.25  # of a tile's side
AUTO = "auto"


def parse_tiles(text: str) -> str | tuple[int, int]:
    """`auto`, or `RxC`: rows and columns of tiles. Raises UsageError for anything else."""
    if text == AUTO:
        return text
    match = re.fullmatch(r"(\d{1,4})[xX×](\d{1,4})", text.strip())
    if not match or 0 in (int(match[1]), int(match[2])):
        raise UsageError(f"--tiles: expected auto, or rows x columns such as 3x4, found {text!r}")
    return int(match[1]), int(match[2])


@dataclass(frozen=True, slots=True)
class Axis:
    """Tiles along one axis of a picture: where they start, and their side, in pixels."""

    starts: tuple[int, ...]
    side: int


def place_tiles(size: tuple[int, int], own: tuple[int, int], tiles: str | tuple[int, int]) -> tuple[Axis, Axis]:
    """Place tiles on a picture of `size` (height, width) for an engine that takes frames of `own` size.

    `tiles`: "auto" for tiles of the engine's own size, or the numbers of rows and columns. Neighbours share at least a
    quarter of their sides. Raises DiffSegError where tiles would be smaller than the engine's frame.
    """
    counts = tiles if isinstance(tiles, tuple) else tuple(map(_count, size, own))
    axes = []
    for length, least, count in zip(size, own, counts, strict=True):
        side = length if count == 1 else -int(-length // (count - (count - 1) * OVERLAP))
        if isinstance(tiles, str) and count > 1:
            side = least
        axes.append(Axis(tuple(np.linspace(0, length - side, count).round().astype(int).tolist()), side))
    if isinstance(tiles, tuple) and any(axis.side < least for axis, least in zip(axes, own, strict=True)):
        most = " x ".join(str(_count(length, least, down=True)) for length, least in zip(size, own, strict=True))
        raise DiffSegError(
            f"tiles {tiles[0]}x{tiles[1]}: expected at least the engine's frame, {own[0]}x{own[1]} pixels, found "
            f"{axes[0].side}x{axes[1].side} in a picture of {size[0]}x{size[1]}; at most {most} tiles fit, or use auto"
        )
    return axes[0], axes[1]


def _count(length: int, side: int, *, down: bool = False) -> int:
    """How many tiles of a side an axis takes; `down`: the most that are not smaller."""
    count = (length - side * OVERLAP) / (side * (1 - OVERLAP))
    return max(1, int(count) if down else -int(-count // 1))

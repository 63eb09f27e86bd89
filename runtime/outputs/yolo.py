"""Segments in the text form of Ultralytics' segmentation data sets: a line is a class and a polygon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.files import YOLO_END
from runtime.outputs.outlines import outlines
from runtime.outputs.sinks import FileSink, FrameFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from runtime.outputs.form import ClipForm
    from runtime.outputs.sinks import Sink
    from runtime.outputs.target import Target
    from runtime.words import Names


def picture(target: Target) -> Sink:
    """`<stem>.txt`, as Ultralytics pairs it with the picture of that name."""
    return FileSink(target.path(".txt"), _encoded)


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_yolo/000000.txt` and so on."""
    return FrameFolder(target.path("_yolo"), ".txt", _encoded)


def yolo_lines(labels: NDArray[np.int32]) -> list[str]:
    """A line for every piece of every segment of labels int [H, W]: `0 x y x y …`, class 0, shares of width and height.

    The form has no holes: a hole becomes part of the outer ring, by a bridge of no width that is crossed twice.
    """
    size = np.array(labels.shape[::-1], np.float64)
    return [
        "0 " + " ".join(f"{number:.6f}" for number in (bridged(piece) / size).ravel().tolist())
        for pieces in outlines(labels).values()
        for piece in pieces
    ]


def bridged(piece: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """One ring float32 [n, 2] for a piece: a bridge leads from each hole's leftmost corner to the corner nearest to it.

    With the even-odd rule and with the non-zero rule it has the pixels of the piece.
    """
    ring = piece[0]
    for hole in sorted(piece[1:], key=lambda hole: float(hole[:, 0].min())):
        start = int(hole[:, 0].argmin())
        near = int(((ring - hole[start]) ** 2).sum(axis=1).argmin())
        there = np.roll(hole, -start, axis=0)
        ring = np.concatenate([ring[: near + 1], there, there[:1], ring[near:]])
    return ring


def _encoded(
    frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None, names: Names | None
) -> bytes:
    return "".join(line + YOLO_END for line in yolo_lines(labels)).encode()

"""What the GStreamer element does with frames, without GStreamer: the bytes of a frame in, those of a picture out.

A row of a raw picture begins at a multiple of four bytes: https://gstreamer.freedesktop.org, "Raw Video Media Types".
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import DiffSegError, as_one_line
from runtime.options import read_numbers
from runtime.outputs.draw import draw_overlay
from runtime.outputs.palette import Painter
from runtime.segmenter import Segmenter

if TYPE_CHECKING:
    from numpy.typing import NDArray

# OpenVINO's bindings block each other where two of GStreamer's threads run engines at the same time. An engine uses all
# cores, so that several elements lose little by taking turns.
_ALONE = threading.Lock()


class FrameFilter:
    """One stream of frames."""

    def __init__(self, engine: str = "", device: str = "auto", threshold: str = "", temporal: bool = False) -> None:
        """Open the engine; "" is the embedded one. `threshold`: as of `diffseg segment`; "" is the engine's own.

        `temporal`: labels are identities, which stay with their objects.
        Raises DiffSegError where the engine cannot be opened or an option is invalid.
        """
        given = threshold.strip()
        thresholds: Any = given if given == "auto" else read_numbers(given or None, "threshold", ", or auto")
        if isinstance(thresholds, tuple) and len(thresholds) == 1:
            thresholds = thresholds[0]
        self._segmenter = Segmenter.open(engine or None, device, thresholds=thresholds)
        self._painter = Painter()
        self._frame = np.empty((0, 0, 3), np.uint8)
        self._results = self._segmenter.stream(self._frames(), temporal=temporal)

    def __call__(self, pixels: bytes, height: int, width: int, form: str) -> bytes:
        """The picture of the next frame. `pixels`: BGR, rows padded; `form`: BGR, the overlay, or
        GRAY16_LE or GRAY8, the labels.

        Raises DiffSegError, in one line, where the frame cannot be segmented or has more labels than GRAY8 holds.
        """
        try:
            self._frame = unpadded(pixels, height, width)
            with _ALONE:
                labels = next(self._results).labels
            if form == "BGR":
                return padded(draw_overlay(self._frame, labels, colours=self._painter(labels)))
            if form == "GRAY8" and labels.max() > 255:
                raise DiffSegError(
                    f"expected labels below 256 for GRAY8, found {labels.max()}; ask for format=GRAY16_LE"
                )
            return padded(labels.astype("u1" if form == "GRAY8" else "<u2"))
        except Exception as error:  # what GStreamer shows of an exception is a traceback, and the pipeline goes on
            raise as_one_line(error, "the frame") from None

    def close(self) -> None:
        """Let go of the engine."""
        self._segmenter.close()

    def _frames(self) -> Iterator[NDArray[np.uint8]]:
        while True:
            yield self._frame


def unpadded(pixels: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """BGR rows, each padded, as a frame uint8 [H, W, 3]. Raises DiffSegError where they are too few."""
    row = _row(3 * width)
    if len(pixels) < height * row:
        raise DiffSegError(f"expected {height * row} bytes of a BGR frame {width}x{height}, found {len(pixels)}")
    rows = np.frombuffer(pixels, np.uint8, height * row).reshape(height, row)
    return np.ascontiguousarray(rows[:, : 3 * width]).reshape(height, width, 3)


def padded(picture: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """The bytes of a picture [H, W] or [H, W, 3], each row padded."""
    rows = np.ascontiguousarray(picture).reshape(len(picture), -1).view(np.uint8)
    return np.pad(rows, ((0, 0), (0, _row(rows.shape[1]) - rows.shape[1]))).tobytes()


def _row(size: int) -> int:
    """Bytes of a row with its padding."""
    return size + -size % 4

"""The overlay in a window while a clip is segmented."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import cv2

from runtime.errors import DiffSegError
from runtime.outputs.draw import draw_overlay
from runtime.outputs.sinks import Sink

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from runtime.words import Names


class Drawn(Sink):
    """Draws an overlay that is shown and written nowhere."""

    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
    ) -> NDArray[np.uint8]:
        """The overlay with the segments' words."""
        return draw_overlay(frame, labels, colours=colours, names=names)

    def write(self, number: int, time: Fraction, prepared: Any) -> Path | None:
        """Writes nothing."""
        return None

    def close(self) -> None:
        """Nothing is left to do."""


def check_window() -> None:
    """Raise DiffSegError where no window can be opened. OpenCV's toolkit would abort the whole program instead."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise DiffSegError("--show: there is no display (DISPLAY is not set); leave it out, or run it on a desktop")
    probe = [sys.executable, "-c", "import cv2; cv2.namedWindow('x'); cv2.waitKey(1)"]
    try:
        if subprocess.run(probe, capture_output=True, timeout=30).returncode == 0:
            return
    except subprocess.TimeoutExpired:
        pass
    raise DiffSegError(
        "--show: OpenCV cannot open a window here; expected a desktop and opencv-python, which opencv-python-headless "
        "is not"
    )


def show(window: str, overlay: NDArray[np.uint8]) -> bool:
    """Show a picture; False once the person at the window wants no more (q, Esc, or the window is closed)."""
    cv2.imshow(window, overlay)
    key = cv2.waitKey(1) & 0xFF
    return key not in (ord("q"), 27) and cv2.getWindowProperty(window, cv2.WND_PROP_VISIBLE) >= 1


def close_window(window: str) -> None:
    """Close it, where it was opened."""
    try:
        cv2.destroyWindow(window)
    except cv2.error:  # never opened, for no frame came
        return

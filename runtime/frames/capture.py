"""Cameras through OpenCV; and files and streams where PyAV is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from threading import Event

import numpy as np

from runtime.errors import DiffSegError
from runtime.frames.clip import DEFAULT_RATE, LIVE_TICK, Clip, Picture


class CaptureClip(Clip):
    """A camera, a file or a stream through OpenCV."""

    def __init__(self, address: int | str, name: str) -> None:
        """Open a camera by its number, or a file or URL. `name`: for messages.

        Raises DiffSegError when it cannot be opened.
        """
        super().__init__(name)
        import cv2

        from runtime.frames.decode import decoders_silenced

        camera = isinstance(address, int)
        with decoders_silenced():
            self._capture = cv2.VideoCapture(address) if camera else cv2.VideoCapture(address, cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            what = "cannot be opened" if camera else "is not a video that OpenCV can read, or is damaged"
            hint = "plug it in, and end programs that use it" if camera else "expected a video file or stream"
            raise DiffSegError(f"{name}: {what}; {hint}")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(rate).limit_denominator(1001) if 0 < rate < 1000 else None
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._expected = int(count) if 0 < count < 1e9 and not camera else 0
        self.seconds = float(self._expected / self.rate) if self._expected and self.rate else None
        self.live = not self._expected

    def read(self, stop: Event) -> Iterator[Picture]:
        """Frames until the end of the file, or until the camera gives no more."""
        import cv2

        number, moment = 0, Fraction(-1)
        while not stop.is_set():
            there, image = self._capture.read()
            if not there:
                break
            milliseconds = Fraction(self._capture.get(cv2.CAP_PROP_POS_MSEC)).limit_denominator(10**6)
            # OpenCV gives 0 where the container has no times: then they follow from the rate.
            known = milliseconds > 0 or number == 0
            moment = max(milliseconds / 1000 if known else number / (self.rate or DEFAULT_RATE), moment + LIVE_TICK)
            moment = round(moment / LIVE_TICK) * LIVE_TICK
            number += 1
            yield moment, np.asarray(image, np.uint8)
        if self._expected and number < self._expected and not stop.is_set():
            self.lost.append(f"{number} of {self._expected} frames could be read; the file is cut short or damaged")

    def close(self) -> None:
        """Close the file or device."""
        self._capture.release()

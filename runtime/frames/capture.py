"""Cameras through OpenCV; and files and streams where PyAV is not installed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from threading import Event, Lock

import numpy as np

from runtime.errors import DiffSegError
from runtime.frames.clip import DEFAULT_RATE, LIVE_TICK, Clip, Picture
from runtime.frames.limits import check_pixels
from runtime.frames.media import FILE, is_url, media_options

OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


class CaptureClip(Clip):
    """A camera, a file or a stream through OpenCV."""

    def __init__(self, address: int | str, name: str) -> None:
        """Open a camera by its number, or a file or URL. `name`: for messages.

        Raises DiffSegError when it cannot be opened.
        """
        super().__init__(name)
        import cv2

        from runtime.frames.silence import decoders_silenced

        camera = isinstance(address, int)
        with decoders_silenced():
            if camera:
                self._capture = cv2.VideoCapture(address)
            else:
                with _only_what_is_named(str(address)) as known:
                    self._capture = cv2.VideoCapture(known, cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            what = "cannot be opened" if camera else "is not a video that OpenCV can read, or is damaged"
            hint = "plug it in, and end programs that use it" if camera else "expected a video file or stream"
            raise DiffSegError(f"{name}: {what}; {hint}")
        sides = (self._capture.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        self.pixels = round(math.prod(sides))
        check_pixels(self.pixels, name)
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


_opening = Lock()


@contextmanager
def _only_what_is_named(address: str) -> Iterator[str]:
    """The address as FFmpeg is to open it in the body: a file opens no URL and no other file, a URL opens no file.

    OpenCV reads FFmpeg's options from the environment.
    """
    known = address if is_url(address) or address.startswith(FILE) else FILE + address
    with _opening:
        before = os.environ.get(OPTIONS)
        ours = "|".join(f"{name};{value}" for name, value in media_options(known).items())
        if before is None and is_url(known):
            ours += "|rtsp_transport;tcp"  # OpenCV's own default
        os.environ[OPTIONS] = f"{before}|{ours}" if before else ours
        try:
            yield known
        finally:
            if before is None:
                del os.environ[OPTIONS]
            else:
                os.environ[OPTIONS] = before

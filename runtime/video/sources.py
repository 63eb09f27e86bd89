"""Where a clip's frames come from: files, network streams, cameras, numbered pictures, raw frames on standard input."""

from __future__ import annotations

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.frames import Source

Picture = tuple[Fraction, "NDArray[np.uint8]"]

DEFAULT_RATE = Fraction(25)  # frames per second where a source does not say
LIVE_TICK = Fraction(1, 90_000)
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between two attempts to reconnect; each waits twice as long


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a clip. `time`: seconds from the clip's beginning, exact; `image`: uint8 [H, W, 3] BGR."""

    time: Fraction
    image: NDArray[np.uint8]


class Clip(ABC):
    """An opened source. `read` may be called once.

    Attributes:
        name: for messages.
        rate: frames per second, on average; None where the source does not say.
        tick: every frame's time is a multiple of it, in seconds.
        seconds: length, None where unknown.
        live: frames come when they come, and those that cannot be dealt with in time are left out.
        aspect: width of a pixel over its height.
        audio: file or URL with sound, and the time in it, in seconds, at which this clip's time is 0.
        lost: what could not be read, one line each; filled by `read`.
    """

    rate: Fraction | None = None
    tick: Fraction = LIVE_TICK
    seconds: float | None = None
    live = False
    aspect = Fraction(1)
    audio: tuple[str, Fraction] | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.lost: list[str] = []

    @abstractmethod
    def read(self, stop: Event) -> Iterator[Picture]:
        """Times and frames in order, until the end or until `stop` is set."""

    def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of files and devices."""


def open_clip(
    source: Source,
    *,
    start: Fraction = Fraction(0),
    size: tuple[int, int] | None = None,
    rate: Fraction | None = None,
    reconnect: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Clip:
    """Open what a source of kind video, stream, camera, sequence or stdin stands for.

    `start`: seconds that will not be asked for, so that a file may be entered there; `size`: width and height, and
    `rate`: frames per second, of raw frames and numbered pictures; `reconnect`: open a camera or stream again when it
    drops; `say`: told about that. Raises DiffSegError when it cannot be opened.
    """
    if source.kind == "sequence":
        return PictureClip(source.path, rate or DEFAULT_RATE)
    if source.kind == "stdin":
        if size is None:
            raise DiffSegError("-: raw frames on standard input need --size WIDTHxHEIGHT; they are 8-bit BGR")
        return RawClip(size, rate or DEFAULT_RATE)
    if source.kind == "camera":
        return LiveClip(lambda: CaptureClip(int(source.address), f"camera {source.address}"), reconnect, say)

    def opened() -> Clip:
        address = source.address or str(source.path)
        try:
            import av  # noqa: F401
        except ImportError:
            return CaptureClip(address, source.name)
        from runtime.video.container import ContainerClip

        return ContainerClip(address, source.name, start)

    if source.kind == "stream":
        first = opened()
        return LiveClip(opened, reconnect, say, first) if first.live else first
    from runtime.frames import check_file

    check_file(source.path, "a video")
    return opened()


def frames_between(clip: Clip, start: Fraction, end: Fraction | None, stop: Event) -> Iterator[Frame]:
    """The frames of a clip with start ≤ time < end, all of the first one's size, at times that increase."""
    from runtime.segmenter import resize_frame

    first: tuple[int, ...] | None = None
    last: Fraction | None = None
    for moment, image in clip.read(stop):
        if moment < start:
            continue
        if end is not None and moment >= end:
            return
        if last is not None and moment <= last:  # damaged or careless files repeat times; a video cannot
            moment = last + clip.tick
        last = moment
        first = first or image.shape
        if image.shape != first:
            image = resize_frame(image, *first[:2])
        yield Frame(moment, image)


class PictureClip(Clip):
    """Numbered pictures, `frames/%06d.png`: all that exist, in the order of their numbers."""

    def __init__(self, pattern: Path, rate: Fraction) -> None:
        super().__init__(str(pattern))
        from runtime.outputs import is_own_output

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
        from runtime.frames import read_frame

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


class RawClip(Clip):
    """Raw BGR frames, 8 bits, one after the other without header, on standard input."""

    def __init__(self, size: tuple[int, int], rate: Fraction) -> None:
        super().__init__("standard input")
        self._width, self._height = size
        self.rate, self.tick = rate, 1 / rate

    def read(self, stop: Event) -> Iterator[Picture]:
        """Frames until standard input ends; a last one that is cut short is lost."""
        length = self._width * self._height * 3
        number = 0
        while not stop.is_set():
            data = bytearray(length)
            view, filled = memoryview(data), 0
            while filled < length:
                # Straight from the descriptor: a thread that waits in sys.stdin would hold its lock at exit.
                chunk = os.read(0, min(length - filled, 1 << 20))
                if not chunk:
                    break
                view[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
            if filled < length:
                if filled:
                    self.lost.append(
                        f"the last frame is cut short ({filled} of {length} bytes); is --size {self._width}x"
                        f"{self._height} right?"
                    )
                return
            yield number * self.tick, np.frombuffer(data, np.uint8).reshape(self._height, self._width, 3)
            number += 1


class CaptureClip(Clip):
    """A camera by its index; or a file or stream through OpenCV, where PyAV is not installed."""

    def __init__(self, address: int | str, name: str) -> None:
        super().__init__(name)
        import cv2

        from runtime.frames import decoders_silenced

        camera = isinstance(address, int)
        with decoders_silenced():
            self._capture = cv2.VideoCapture(address) if camera else cv2.VideoCapture(address, cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            what = "cannot be opened" if camera else "is not a video that OpenCV can read, or is damaged"
            hint = "is it plugged in, and used by no other program?" if camera else "expected a video file or stream"
            raise DiffSegError(f"{name}: {what}; {hint}")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(rate).limit_denominator(1001) if 0 < rate < 1000 else None
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._expected = int(count) if 0 < count < 1e9 and not camera else 0
        self.seconds = float(self._expected / self.rate) if self._expected and self.rate else None
        self.live = not self._expected

    def read(self, stop: Event) -> Iterator[Picture]:
        """Frames until the end, or until the camera gives none."""
        import cv2

        number, moment = 0, Fraction(-1)
        while not stop.is_set():
            there, image = self._capture.read()
            if not there:
                break
            milliseconds = Fraction(self._capture.get(cv2.CAP_PROP_POS_MSEC)).limit_denominator(10**6)
            # Times of a file; where the container has none they follow from the rate.
            known = milliseconds > 0 or number == 0
            moment = max(milliseconds / 1000 if known else number / (self.rate or DEFAULT_RATE), moment + LIVE_TICK)
            moment = round(moment / LIVE_TICK) * LIVE_TICK
            number += 1
            yield moment, np.asarray(image, np.uint8)
        if self._expected and number < self._expected and not stop.is_set():
            self.lost.append(f"{number} of {self._expected} frames could be read; the file is cut short or damaged")

    def close(self) -> None:
        """Let go of the device."""
        self._capture.release()


class LiveClip(Clip):
    """A camera or stream without an end: frames carry the time at which they came; opened again when it drops."""

    live = True

    def __init__(
        self, opener: Callable[[], Clip], reconnect: bool, say: Callable[[str], None], first: Clip | None = None
    ) -> None:
        self._inner = first or opener()
        super().__init__(self._inner.name)
        self._opener, self._reconnect, self._say = opener, reconnect, say
        self.rate = self._inner.rate

    def read(self, stop: Event) -> Iterator[Picture]:
        """Frames until the source ends, or with `reconnect` until `stop` is set."""
        began: float | None = None
        wait = FIRST_WAIT
        while True:
            for _, image in self._inner.read(stop):
                now = time.monotonic()
                began = began or now
                wait = FIRST_WAIT
                yield round(Fraction(now - began) / LIVE_TICK) * LIVE_TICK, image
            self._inner.close()
            if stop.is_set():
                return
            lost = "; ".join(self._inner.lost) or "no more frames come"
            if not self._reconnect:
                self.lost.append(f"{lost}; --reconnect would open it again")
                return
            while True:
                self._say(f"{self.name}: {lost}; opening it again in {wait:g} s")
                if stop.wait(wait):
                    return
                wait = min(2 * wait, LONGEST_WAIT)
                try:
                    self._inner = self._opener()
                    break
                except DiffSegError as error:
                    lost = str(error).removeprefix(f"{self.name}: ")

    def close(self) -> None:
        """Let go of the device."""
        self._inner.close()

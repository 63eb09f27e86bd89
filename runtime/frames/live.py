"""Cameras, and streams without an end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from threading import Event
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError
from runtime.frames.capture import CaptureClip
from runtime.frames.clip import LIVE_TICK, Clip, Picture
from runtime.frames.video import open_container

if TYPE_CHECKING:
    from runtime.frames.source import OpenOptions, Source

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds before an attempt to reconnect; each waits twice as long as the last


class LiveClip(Clip):
    """A camera or stream without an end. A frame's time is the time at which it arrived."""

    live = True

    def __init__(self, opener: Callable[[], Clip], options: OpenOptions, first: Clip | None = None) -> None:
        """Call `opener`, and again when the source drops if the options say so. `first`: already opened by it."""
        self._inner = first or opener()
        super().__init__(self._inner.name)
        self._opener, self._reconnect, self._say = opener, options.reconnect, options.say
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
                self.lost.append(f"{lost}; --reconnect opens it again")
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
        """Close the device or connection."""
        self._inner.close()


def open_camera(source: Source, options: OpenOptions) -> Clip:
    """Open a source of kind camera. Raises DiffSegError when there is no such camera."""
    return LiveClip(lambda: CaptureClip(int(source.address), f"camera {source.address}"), options)


def open_stream(source: Source, options: OpenOptions) -> Clip:
    """Open a source of kind stream, which may have an end. Raises DiffSegError when it cannot be opened."""

    def opener() -> Clip:
        return open_container(source.address, source.name, options.start)

    first = opener()
    return LiveClip(opener, options, first) if first.live else first

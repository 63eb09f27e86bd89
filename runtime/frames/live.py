"""Cameras and streams without an end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from threading import Event
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError
from runtime.frames.clip import LIVE_TICK, Clip, Picture

if TYPE_CHECKING:
    pass


FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between two attempts to reconnect; each waits twice as long


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

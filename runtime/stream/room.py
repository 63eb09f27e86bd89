"""How many pixels may be in a stream at once: what bounds its memory, however large the frames."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Any


class Room:
    """Lets frames in while all that are in have fewer pixels than `most` together; one alone may have more."""

    def __init__(self, most: int) -> None:
        self.stopping = threading.Event()
        self._most, self._taken = most, 0
        self._turn, self._waiting = 0, False
        self._changed = threading.Condition()

    def take(self, pixels: int, turn: int | None = None) -> None:
        """Wait for one's turn, if one is given, and until there is room; not when the stream stops."""
        with self._changed:
            while not self.stopping.is_set():
                if turn in (None, self._turn):
                    self._waiting = self._taken > 0 and self._taken + pixels > self._most
                    if not self._waiting:
                        break
                self._changed.wait(0.2)
            self._taken += pixels
            self._turn += 1
            self._changed.notify_all()

    def is_full(self) -> bool:
        """Whether a frame waits until others leave."""
        return self._waiting

    def give(self, pixels: int) -> None:
        """Make room."""
        with self._changed:
            self._taken -= pixels
            self._changed.notify_all()


def with_turns(jobs: Iterable[Any]) -> Iterator[Any]:
    """The jobs, each with its `turn`, for `Room.take`. Closes what it reads from."""
    source = iter(jobs)
    try:
        for turn, job in enumerate(source):
            job.turn = turn
            yield job
    finally:
        if isinstance(source, Generator):
            source.close()

"""What a clip is: frames with exact times, one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


Picture = tuple[Fraction, "NDArray[np.uint8]"]


DEFAULT_RATE = Fraction(25)  # frames per second where a source does not say


LIVE_TICK = Fraction(1, 90_000)


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


def frames_between(clip: Clip, start: Fraction, end: Fraction | None, stop: Event) -> Iterator[Frame]:
    """The frames of a clip with start ≤ time < end, all of the first one's size, at times that increase."""
    from runtime.frames.resize import resize_frame

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

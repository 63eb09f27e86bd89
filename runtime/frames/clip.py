"""Clips: frames with exact times, one after the other."""

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

Picture = tuple[Fraction, "NDArray[np.uint8]"]  # time in seconds, and frame
DEFAULT_RATE = Fraction(25)  # frames per second of a source that does not say
LIVE_TICK = Fraction(1, 90_000)  # seconds; a tick of MPEG streams


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a clip.

    Attributes:
        time: seconds from the clip's beginning, exact.
        image: uint8 [H, W, 3] BGR.
        number: its index in the clip, from 0, whatever part of the clip is read.
    """

    time: Fraction
    image: NDArray[np.uint8]
    number: int


class Clip(ABC):
    """An opened source. `read` may be called once.

    Attributes:
        name: for messages.
        rate: frames per second, on average; None if the source does not say.
        tick: in seconds; the time of every frame is a multiple of it.
        seconds: length; None if unknown.
        live: frames arrive in real time, and those that cannot be processed in time are left out.
        gaps: whether `read` may leave out frames before or between those it gives, so that a frame's number follows
            from its time and the rate.
        aspect: width of a pixel divided by its height.
        audio: file or URL with sound, and the time in it, in seconds, at which this clip's time is 0.
        pixels: of a frame, as the header has it; 0 if it does not say.
        lost: what could not be read, one line each; filled by `read`.
    """

    rate: Fraction | None = None
    tick: Fraction = LIVE_TICK
    seconds: float | None = None
    live = False
    gaps = False
    aspect = Fraction(1)
    audio: tuple[str, Fraction] | None = None
    pixels = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.lost: list[str] = []

    @abstractmethod
    def read(self, stop: Event) -> Iterator[Picture]:
        """Times and frames in order, until the end or until `stop` is set."""

    def close(self) -> None:  # noqa: B027 - most clips hold nothing open
        """Close files and devices."""


def frames_between(clip: Clip, start: Fraction, end: Fraction | None, stop: Event) -> Iterator[Frame]:
    """The frames of a clip with start ≤ time < end, all of the first one's size.

    Times and numbers increase. `start`, `end`: in seconds; an `end` of None reads to the end of the clip.
    """
    from runtime.frames.resize import resize_frame

    first: tuple[int, ...] | None = None
    last: Fraction | None = None
    number = -1
    for moment, image in clip.read(stop):
        number += 1
        if clip.gaps and clip.rate:
            number = max(number, round(moment * clip.rate))
        if moment < start:
            continue
        if end is not None and moment >= end:
            return
        if last is not None and moment <= last:  # some files repeat times; a video that is written must not
            moment = last + clip.tick
        last = moment
        first = first or image.shape
        if image.shape != first:
            image = resize_frame(image, *first[:2])
        yield Frame(moment, image, number)

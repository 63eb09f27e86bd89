"""What of a clip its outputs keep."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from runtime.frames.clip import DEFAULT_RATE

if TYPE_CHECKING:
    from runtime.frames.clip import Clip


@dataclass(frozen=True, slots=True)
class ClipForm:
    """Average rate, tick in seconds, shape of pixels, and where its sound is: a file or URL, and the time there."""

    rate: Fraction
    tick: Fraction
    aspect: Fraction = Fraction(1)
    audio: tuple[str, Fraction] | None = None

    @classmethod
    def of(cls, clip: Clip) -> ClipForm:
        """As the clip is."""
        return cls(clip.rate or DEFAULT_RATE, clip.tick, clip.aspect, clip.audio)

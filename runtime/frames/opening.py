"""Opening the clip that a source stands for."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError
from runtime.frames.capture import CaptureClip
from runtime.frames.clip import DEFAULT_RATE, Clip
from runtime.frames.live import LiveClip
from runtime.frames.pictures import PictureClip
from runtime.frames.raw import RawClip

if TYPE_CHECKING:
    from runtime.frames.source import Source


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
        from runtime.frames.container import ContainerClip

        return ContainerClip(address, source.name, start)

    if source.kind == "stream":
        first = opened()
        return LiveClip(opened, reconnect, say, first) if first.live else first
    from runtime.frames.decode import check_file

    check_file(source.path, "a video")
    return opened()

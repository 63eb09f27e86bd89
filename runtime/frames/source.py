"""One input that was found: an image, a clip, a camera or a stream."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "dib", "exr", "gif", "hdr", "jp2", "jpe", "jpeg", "jpg", "pbm", "pfm", "pgm", "png", "pnm"),
        *("ppm", "tif", "tiff", "webp"),
    )
)
VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "flv", "h264", "hevc", "m2ts", "m4v", "mjpeg", "mjpg", "mkv", "mov", "mp4", "mpeg"),
        *("mpg", "mts", "mxf", "ogv", "vob", "webm", "wmv", "y4m"),
    )
)


@dataclass(frozen=True, slots=True)
class Source:
    """One image or clip to segment.

    Attributes:
        path: the file to read; of a sequence its pattern.
        target: path of the outputs below the output folder, without suffix.
        kind: a name in `runtime.frames.registry.SOURCES`.
        address: what to open instead of a file: a URL, a camera's number, "-". Empty for files.
        data: a whole encoded picture, read from standard input already; None for everything else.
    """

    path: Path
    target: Path
    kind: str = "image"
    address: str = ""
    data: bytes | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """For people: the path, or the address without its password."""
        return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", self.address) if self.address else str(self.path)


def _ignore(line: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How a source is opened.

    Attributes:
        start: in seconds; frames before it are not needed, so a file may be entered there.
        size: width and height of raw frames in pixels; None if the user gave none.
        rate: frames per second of raw frames and numbered pictures; None if the user gave none.
        reconnect: open a camera or stream again when it drops.
        say: takes a line for people when that happens.
    """

    start: Fraction = Fraction(0)
    size: tuple[int, int] | None = None
    rate: Fraction | None = None
    reconnect: bool = False
    say: Callable[[str], None] = _ignore


def known_formats() -> str:
    """The image formats by suffix, for messages: "bmp gif jpg"."""
    return " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))

"""One input: an image, a clip, a camera or a stream."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    pass


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


NAMED_VIDEO_SUFFIXES = VIDEO_SUFFIXES | {".ts"}  # in a folder, .ts is more often a program than a broadcast


Kind = Literal["image", "video", "sequence", "stream", "camera", "stdin"]


@dataclass(frozen=True, slots=True)
class Source:
    """One image or clip to segment.

    `path` is read, for a sequence it is the pattern; `target` is its outputs' path below the output folder, no suffix;
    `address` stands for the path of what is no file: a URL, a camera's index, "-".
    """

    path: Path
    target: Path
    kind: Kind = "image"
    address: str = ""

    @property
    def name(self) -> str:
        """For people: the path, or the address without its password."""
        return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", self.address) if self.address else str(self.path)


def _known() -> str:
    return " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))

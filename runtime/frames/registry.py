"""The kinds of source that an INPUT may name: a registry that is data. `README.md` says how to add one.

Nothing here opens a source or imports a decoder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from runtime.frames.source import IMAGE_SUFFIXES, VIDEO_SUFFIXES


def _name_of_address(text: str) -> str:
    """`rtsp://user:secret@host:554/live.sdp` → `host_554_live.sdp`."""
    try:
        parts = urlsplit(text)
    except ValueError:  # as of http://[, which then cannot be opened
        return "stream"
    words = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
    return re.sub(r"[^A-Za-z0-9.]+", "_", words).strip("_.") or "stream"


def _name_of_pattern(text: str) -> str:
    """`shots/take_%04d.png` → `take.png`; `shots/%04d.png` → `shots.png`."""
    path = Path(text)
    stem = re.sub(r"%\d*d", "", path.stem).strip("._- ")
    return f"{stem or path.absolute().parent.name or 'sequence'}{path.suffix}"


@dataclass(frozen=True, slots=True)
class SourceKind:
    """One kind of source.

    Attributes:
        name: of the kind, in `Source.kind`.
        opener: "module:function"; the function takes a Source and OpenOptions and returns an opened Clip.
        still: one photograph, and not a clip.
        suffixes: of its files, in lower case.
        suffixes_if_named: suffixes that count only for a file named by the user, not for one found in a folder.
        pattern: regular expression; an INPUT that matches as a whole is of this kind, unless a file has that name.
        before_files: the pattern counts also where a file has that name.
        is_path: an INPUT that matches is a path to read, and not an address.
        outputs: INPUT that matches → name of its outputs, with a suffix that is dropped where names do not collide.
        settle: "module:function" called before anything is opened; it takes a Source and OpenOptions, returns the
            Source to use instead, and raises UsageError when an option is missing. Empty: nothing to do.
    """

    name: str
    opener: str
    still: bool = False
    suffixes: frozenset[str] = frozenset()
    suffixes_if_named: frozenset[str] = frozenset()
    pattern: str = ""
    before_files: bool = False
    is_path: bool = False
    outputs: Callable[[str], str] = _name_of_address
    settle: str = ""


# The first kind whose pattern matches takes an INPUT; a file of unknown suffix is of the first kind.
SOURCES: dict[str, SourceKind] = {
    kind.name: kind
    for kind in (
        SourceKind("image", "runtime.frames.still:open_image", still=True, suffixes=IMAGE_SUFFIXES),
        SourceKind(
            "video",
            "runtime.frames.video:open_video",
            suffixes=VIDEO_SUFFIXES,
            suffixes_if_named=frozenset({".ts"}),  # in a folder, .ts is more often a program than a broadcast
        ),
        SourceKind(
            "stdin",
            "runtime.frames.raw:open_stdin",
            pattern="-",
            before_files=True,
            outputs=lambda text: "stdin",
            settle="runtime.frames.raw:settle_stdin",
        ),
        SourceKind(
            "camera",
            "runtime.frames.live:open_camera",
            pattern="[0-9]{1,3}",
            outputs=lambda text: f"camera{int(text)}",
        ),
        SourceKind("stream", "runtime.frames.live:open_stream", pattern=r"(?s)[A-Za-z][A-Za-z0-9+.-]*://.*"),
        SourceKind(
            "sequence",
            "runtime.frames.pictures:open_sequence",
            pattern=r"(?s)(.*[/\\])?[^%/\\]*%(0?\d+)?d[^%/\\]*",
            is_path=True,
            outputs=_name_of_pattern,
        ),
    )
}


def kind_of_input(text: str) -> SourceKind | None:
    """The kind that an INPUT names by its form; None for a file, a folder or a glob."""
    kind = next((kind for kind in SOURCES.values() if kind.pattern and re.fullmatch(kind.pattern, text)), None)
    try:
        return None if kind is None or (os.path.lexists(text) and not kind.before_files) else kind
    except ValueError:  # a null byte
        return None


def kind_of_file(path: Path) -> SourceKind:
    """The kind of a file, by its suffix."""
    suffix = path.suffix.lower()
    found = (kind for kind in SOURCES.values() if suffix in kind.suffixes | kind.suffixes_if_named)
    return next(found, next(iter(SOURCES.values())))


def suffixes_in_folders() -> frozenset[str]:
    """Suffixes, in lower case, of the files that are read when a folder is the input."""
    return frozenset().union(*(kind.suffixes for kind in SOURCES.values()))

"""A video file, or a stream: in a child process where the system has what that needs."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.frames.clip import Clip
    from runtime.frames.source import OpenOptions, Source


def open_video(source: Source, options: OpenOptions) -> Clip:
    """Open a source of kind video. Raises DiffSegError when the file is not a video that can be read."""
    from runtime.frames.decode import check_file
    from runtime.frames.media import FILE

    check_file(source.path, "a video")
    return open_container(f"{FILE}{source.path}", source.name, options.start)


def open_container(address: str, name: str, start: Fraction) -> Clip:
    """Open `file:PATH` or a URL. `name`: for messages. `start`: in seconds, where PyAV may enter a file.

    Raises DiffSegError when it cannot be opened.
    """
    from runtime.frames.apart import open_apart, open_here

    found = open_apart(address, name, start)
    return open_here(address, name, start) if found is None else found

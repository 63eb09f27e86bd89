"""Where an ONNX file's weights are: outside the file they must be in its folder. Reads the file without any library.

ONNX Runtime up to 1.20 and OpenVINO read whatever path the file names.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from runtime.engine.wire import BYTES, fields
from runtime.errors import DiffSegError

# Numbers of the fields in onnx.proto through which tensors are reached: message → field → message there.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function", 20: "training"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_DEEPEST = 200  # messages in messages; protobuf itself takes 100
_KEY, _VALUE = 1, 2  # fields of an entry


def check_external_data(path: Path) -> None:
    """Raise DiffSegError unless all external data of an ONNX file is in regular files of its own folder.

    A file that is no ONNX file may pass: the library that opens it says so.
    """
    folder = os.path.realpath(path.parent)
    for text in external_data(path):
        inside = Path(text)
        windows = PureWindowsPath(text)
        outside = (
            windows.is_absolute() or windows.drive or inside.is_absolute() or ".." in windows.parts or "\0" in text
        )
        try:
            found = os.path.realpath(path.parent / inside) if not outside else ""
            outside = outside or os.path.commonpath([folder, found]) != folder
            regular = outside or not os.path.lexists(found) or stat.S_ISREG(os.stat(found).st_mode)  # noqa: PTH116
        except (OSError, ValueError):
            regular = False
        if outside or not regular:
            raise DiffSegError(
                f"{path} has weights in {text[:200]!r}; expected a regular file in the engine's own folder; do not use "
                "this engine unless you know who made it, or export it again with 'python -m export'"
            )


def external_data(path: Path) -> list[str]:
    """Where an ONNX file says that its weights are, in order; nothing of a file that cannot be read."""
    locations = set[bytes]()
    with (
        contextlib.suppress(OSError, ValueError),  # an empty file cannot be mapped
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        contextlib.suppress(ValueError, IndexError),  # what comes before the damage counts
    ):
        locations.update(_locations(data, 0, len(data), "model", 0))
    return [os.fsdecode(location) for location in sorted(locations)]


def _locations(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[bytes]:
    """The locations of external data in one message. Raises ValueError or IndexError where it is no such message."""
    if depth > _DEEPEST:
        raise ValueError("too deep")
    known = _FIELDS.get(message, {})
    texts = {_KEY: b"", _VALUE: b""}
    for field in fields(data, start, end):
        if field.wire != BYTES:
            continue
        if field.number in known:
            yield from _locations(data, field.start, field.end, known[field.number], depth + 1)
        elif message == "entry" and field.number in texts:
            texts[field.number] = data[field.start : field.end]
    if texts[_KEY] == b"location":
        yield texts[_VALUE]

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
_KEY, _VALUE, _BYTES = 1, 2, 2  # fields of an entry; the wire type of what has a length
_SKIPPED = {1: 8, 3: 0, 4: 0, 5: 4}  # wire type → bytes; 3 and 4 are the brackets of a group


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
    position = start
    while position < end:
        tag, position = _varint(data, position)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            position = _varint(data, position)[1]
        elif wire == _BYTES:
            length, position = _varint(data, position)
            if position + length > end:
                raise ValueError("cut short")
            if field in known:
                yield from _locations(data, position, position + length, known[field], depth + 1)
            elif message == "entry" and field in texts:
                texts[field] = data[position : position + length]
            position += length
        elif wire in _SKIPPED:
            position += _SKIPPED[wire]
        else:
            raise ValueError("a wire type that protobuf does not have")
    if texts[_KEY] == b"location":
        yield texts[_VALUE]


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")

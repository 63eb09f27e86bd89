"""Protocol Buffers as bytes, of which ONNX files are made: reading and writing fields without any library.

https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

BYTES = 2  # the wire type of what has a length: messages, texts, packed numbers
_FIXED = {1: 8, 3: 0, 4: 0, 5: 4}  # wire type → bytes; 3 and 4 are the brackets of a group
Data = bytes | mmap.mmap


class Field(NamedTuple):
    """A field of a message: its number, its wire type, where its tag begins, and where its content begins and ends."""

    number: int
    wire: int
    tag: int
    start: int
    end: int


def fields(data: Data, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """The fields of the message in data[start:end]. Raises ValueError or IndexError where it is no message."""
    position, end = start, len(data) if end is None else end
    while position < end:
        tag = position
        key, position = varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            after = varint(data, position)[1]
        elif wire == BYTES:
            length, position = varint(data, position)
            after = position + length
            if after > end:
                raise ValueError("cut short")
        elif wire in _FIXED:
            after = position + _FIXED[wire]
        else:
            raise ValueError("a wire type that protobuf does not have")
        yield Field(number, wire, tag, position, after)
        position = after


def varint(data: Data, position: int) -> tuple[int, int]:
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


def field(number: int, content: bytes | str | int) -> bytes:
    """A field with a message, a text or a number from 0."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    content = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low = bytearray()
    while value > 0x7F:
        low.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*low, value])

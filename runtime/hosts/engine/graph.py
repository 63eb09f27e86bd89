"""Editing ONNX graphs as bytes, without the package onnx: one graph put behind another, and inputs and outputs changed.

In Protocol Buffers a list is a field that comes several times, so the fields of two graphs in a row are both lists.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from runtime.engine.external import external_data
from runtime.engine.spec import METADATA_KEY
from runtime.engine.wire import BYTES, Data, Field, field, fields, varint
from runtime.errors import DiffSegError

# Numbers of fields in onnx.proto.
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA = 7, 8, 14
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13
_NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 2, 4, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_NAME = 1  # of a graph's input, output and value
_FLOAT, _INT32 = 1, 6  # types of tensors
_INT = 2  # the type of an attribute


class Graph:
    """An ONNX file in parts: the fields of its model that are not the graph, and those of the graph, in order."""

    def __init__(self, path: Path) -> None:
        """Read a file. Raises DiffSegError when it is damaged, or its weights are in another file; OSError."""
        data = path.read_bytes()
        if external_data(path):
            raise DiffSegError(
                f"{path} has its weights in another file; expected one file up to 1.5 GB; export the engine again with "
                "'python -m export' and --head labels"
            )
        try:
            self.model = [(each.number, _content(data, each)) for each in fields(data)]
            graph, *_ = (each for each in fields(data) if each.number == _MODEL_GRAPH and each.wire == BYTES)
            self.parts = [(each.number, _content(data, each)) for each in fields(data, graph.start, graph.end)]
        except (ValueError, IndexError):
            raise DiffSegError(f"{path} is damaged, or no ONNX file; copy it again, or export it again") from None

    @property
    def opsets(self) -> list[bytes]:
        """The versions of the operators."""
        return sorted(content for number, content in self.model if number == _MODEL_OPSET)  # type: ignore[misc]

    def outputs(self) -> list[str]:
        """Names of the outputs, in order."""
        return [_name(content) for number, content in self.parts if number == _OUTPUT]

    def follow(self, other: Graph, kept: Collection[str]) -> None:
        """Append `other`, whose inputs are outputs of this graph, or `kept`. Its outputs come first.

        What it takes is no output any more, but stays in the graph's list of values.
        """
        taken = {_name(content) for number, content in other.parts if number == _INPUT} - set(kept)
        mine = [
            (_VALUE_INFO if number == _OUTPUT and _name(content) in taken else number, content)
            for number, content in self.parts
        ]
        theirs = [
            (number, content)
            for number, content in other.parts
            if number in (_NODE, _INITIALIZER, _OUTPUT, _VALUE_INFO) or (number == _INPUT and _name(content) in kept)
        ]
        last = [part for part in mine if part[0] == _OUTPUT]
        self.parts = [part for part in mine if part[0] != _OUTPUT] + theirs + last

    def fix(self, name: str, values: Sequence[float]) -> None:
        """Make the input `name`, float32 [n], a constant."""
        self._remove(_INPUT, lambda found: found == name)
        tensor = field(_TENSOR_DIMS, len(values)) + field(_TENSOR_TYPE, _FLOAT) + field(_TENSOR_NAME, name)
        tensor += field(_TENSOR_RAW, struct.pack(f"<{len(values)}f", *values))
        self.parts.append((_INITIALIZER, tensor))

    def as_int32(self, name: str, shape: Sequence[int | str]) -> None:
        """Make `name` the only output, int32 of this shape, in which a side may have a name.

        If it is a Cast, that one casts to int32: TensorRT takes no uint8 between two operators.
        """
        attribute = field(1, "to") + field(3, _INT32) + field(20, _INT)
        for index, (number, content) in enumerate(self.parts):
            if number != _NODE or not isinstance(content, bytes) or _texts(content, _NODE_OUTPUT) != [name]:
                continue
            if _texts(content, _NODE_OPERATOR) == ["Cast"]:
                kept = (each for each in fields(content) if each.number != _NODE_ATTRIBUTE)
                node = b"".join(content[each.tag : each.end] for each in kept)
                self.parts[index] = (_NODE, node + field(_NODE_ATTRIBUTE, attribute))
        sides = b"".join(field(1, field(1 if isinstance(side, int) else 2, side)) for side in shape)
        self._remove(_OUTPUT, lambda _: True)
        self.parts.append((_OUTPUT, field(1, name) + field(2, field(1, field(1, _INT32) + field(2, sides)))))

    def to_bytes(self, description: str | None) -> bytes:
        """The file. `description`: the engine's, in place of the one that it has; None for none."""
        model = [part for part in self.model if part[0] not in (_MODEL_GRAPH, _MODEL_METADATA)]
        model.append((_MODEL_GRAPH, b"".join(field(*part) for part in self.parts)))
        if description is not None:
            model.append((_MODEL_METADATA, field(1, METADATA_KEY) + field(2, description)))
        return b"".join(field(*part) for part in model)

    def _remove(self, kind: int, unwanted: Callable[[str], bool]) -> None:
        self.parts = [part for part in self.parts if part[0] != kind or not unwanted(_name(part[1]))]


def _content(data: Data, each: Field) -> bytes | int:
    """A field's content: bytes, or a number. Raises ValueError where it is neither, which ONNX does not have here."""
    if each.wire == 0:
        return varint(data, each.start)[0]
    if each.wire != BYTES:
        raise ValueError("a wire type that ONNX does not have here")
    return data[each.start : each.end]


def _name(content: bytes | int) -> str:
    """The name of an input, an output or a value."""
    assert isinstance(content, bytes)
    return next(iter(_texts(content, _NAME)), "")


def _texts(message: bytes, number: int) -> list[str]:
    """The texts in the fields of a message that have this number."""
    found = (each for each in fields(message) if each.number == number)
    return [message[each.start : each.end].decode(errors="replace") for each in found]

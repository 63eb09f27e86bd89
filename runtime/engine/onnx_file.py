"""The description inside an ONNX engine, read without the package onnx and without the weights."""

import contextlib
import mmap
from pathlib import Path

from runtime.engine.spec import METADATA_KEY, EngineSpec, read_metadata
from runtime.engine.wire import fields
from runtime.errors import DiffSegError

METADATA_PROPS = 14  # field of ModelProto; its entries have a key, 1, and a value, 2


def read_engine(path: Path) -> EngineSpec:
    """Read the description inside an ONNX engine and compare it with the sidecar.

    Raises DiffSegError when there is no file, it is not an ONNX engine, or the sidecar belongs to another file.
    """
    if path.is_dir():
        raise DiffSegError(f"{path} is a folder; expected an engine, such as {path}/NAME.onnx")
    if path.suffix.lower() != ".onnx":
        raise DiffSegError(f"{path}: expected an ONNX engine, which ends in .onnx")
    if not path.is_file():
        raise DiffSegError(
            f"no engine {path}; export one with 'python -m export MODEL --output {path.with_suffix('')}'"
        )
    return read_metadata(path, onnx_metadata(path).get(METADATA_KEY))


def onnx_metadata(path: Path) -> dict[str, str]:
    """The metadata entries of an ONNX file; empty for another file. Weights are skipped, not read."""
    entries = {}
    with (
        contextlib.suppress(OSError, ValueError, IndexError, KeyError),  # empty, cut off, or not ONNX
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        found = [field for field in fields(data) if field.number == METADATA_PROPS]
        for entry in found:
            pair = {each.number: data[each.start : each.end] for each in fields(data, entry.start, entry.end)}
            entries[pair[1].decode()] = pair[2].decode()
    return entries

"""The description inside an ONNX engine, read without the package onnx and without the weights."""

from pathlib import Path
from typing import BinaryIO

from runtime.engine.spec import METADATA_KEY, EngineSpec, read_metadata
from runtime.errors import DiffSegError

METADATA_PROPS = 14  # field of ModelProto; its entries have a key, 1, and a value, 2
LENGTH_DELIMITED = 2
FIXED = {1: 8, 5: 4}  # bytes of the wire types of fixed size


def read_engine(path: Path) -> EngineSpec:
    """Read the description inside an ONNX engine and compare it with the sidecar.

    Raises DiffSegError when there is no file, it is not an ONNX engine, or the sidecar belongs to another file.
    """
    if path.is_dir():
        raise DiffSegError(f"{path} is a folder; expected an engine, such as {path}/NAME.onnx")
    if path.suffix.lower() != ".onnx":
        raise DiffSegError(f"{path}: expected an ONNX engine, .onnx, of which a plan is built")
    if not path.is_file():
        raise DiffSegError(
            f"no engine {path}; export one with 'python -m export MODEL --output {path.with_suffix('')}'"
        )
    return read_metadata(path, onnx_metadata(path).get(METADATA_KEY))


def onnx_metadata(path: Path) -> dict[str, str]:
    """The metadata entries of an ONNX file; empty for another file. Weights are skipped, not read."""
    entries = {}
    with path.open("rb") as file:
        size = path.stat().st_size
        try:
            while file.tell() < size:
                field, kind = divmod(_varint(file), 8)
                if kind == 0:
                    _varint(file)
                    continue
                length = _varint(file) if kind == LENGTH_DELIMITED else FIXED[kind]
                if file.tell() + length > size:
                    return {}  # cut off, or not ONNX
                if field == METADATA_PROPS:
                    end, pair = file.tell() + length, {}
                    while file.tell() < end:
                        key, _ = divmod(_varint(file), 8)
                        pair[key] = file.read(_varint(file)).decode()
                    entries[pair[1]] = pair[2]
                else:
                    file.seek(length, 1)
        except (KeyError, EOFError, UnicodeDecodeError):
            return {}
    return entries


def _varint(file: BinaryIO) -> int:
    """Read a number of Protocol Buffers: seven bits per byte, the lowest first."""
    number = shift = 0
    while True:
        byte = file.read(1)
        if not byte or shift > 63:
            raise EOFError
        number |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            return number

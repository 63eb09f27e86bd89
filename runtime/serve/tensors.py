"""The Open Inference Protocol (KServe v2) over HTTP, with binary tensors: from bytes to arrays and back.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.engine.heads import HEADS
from runtime.serve.settings import Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.engine.spec import EngineSpec

VERSION = "1"  # of the one model
LENGTH = "inference-header-content-length"  # the header with the length of the JSON before binary tensors
MOST_JSON = 16 << 20  # bytes: a list in JSON takes many times as much memory
MOST_SIDES = 4  # of a tensor
NOT_OURS = ("shared_memory_region", "classification")  # extensions that change what an answer has
TYPES = {"UINT8": "<u1", "INT32": "<i4", "FP32": "<f4"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for inference.

    Attributes:
        identity: the request's own id, which its answer repeats; None for none.
        frames: uint8 [B, H, W, 3].
        thresholds: one for each iteration; None: the service's own.
        outputs: name → whether it is to be binary, in the order of the answer.
    """

    identity: str | None
    frames: NDArray[np.uint8]
    thresholds: tuple[float, ...] | None
    outputs: dict[str, bool]


def metadata(name: str, spec: EngineSpec, platform: str, labels: str) -> dict[str, Any]:
    """What /v2/models/NAME says: uint8 frames, however the engine takes them, and labels for every head.

    `labels`: their type, UINT8 or INT32.
    """
    batch = -1  # the service fills up a fixed batch, and divides a larger one
    inputs = [{"name": "frame", "datatype": "UINT8", "shape": [batch, spec.height, spec.width, 3]}]
    if HEADS[spec.head].route != "features":  # what is cut has no thresholds
        inputs.append({"name": "thresholds", "datatype": "FP32", "shape": [len(spec.thresholds)]})
    return {
        "name": name,
        "versions": [VERSION],
        "platform": platform,
        "inputs": inputs,
        "outputs": [
            {"name": "labels", "datatype": labels, "shape": [batch, spec.height, spec.width]},
            {"name": "segments", "datatype": "INT32", "shape": [batch]},
        ],
    }


def read_request(body: bytes, length: str | None, spec: EngineSpec) -> Asked:
    """Read a request for inference. `length`: its header Inference-Header-Content-Length, None without one.

    Raises Refused, 400, where it is not what the engine takes.
    """
    end = len(body)
    if length is not None:
        if not (length.isascii() and length.isdecimal() and len(length) < 20 and int(length) <= len(body)):
            raise Refused(
                400, f"{LENGTH}: expected a number of at most {len(body)}, the body's bytes, found {length[:40]!r}"
            )
        end = int(length)
    if end > MOST_JSON:
        raise Refused(413, f"expected at most {MOST_JSON >> 20} MB of JSON, found {end} bytes; send binary tensors")
    try:
        data = json.loads(body[:end])
    except (ValueError, RecursionError):
        raise Refused(400, "expected a JSON object of the Open Inference Protocol, found other bytes") from None
    if not isinstance(data, dict):
        raise Refused(400, f"expected a JSON object, found {type(data).__name__}")
    identity, parameters = data.get("id"), data.get("parameters", {})
    if not (identity is None or isinstance(identity, str)) or not isinstance(parameters, dict):
        raise Refused(400, "expected id to be a text and parameters an object")
    tensors = _inputs(data.get("inputs"), memoryview(body)[end:])
    known = {"frame": "UINT8", "thresholds": "FP32"}
    for name, (kind, _) in tensors.items():
        if name not in known or kind != known[name]:
            expected = ", ".join(f"{each} {of}" for each, of in known.items())
            raise Refused(400, f"inputs: expected {expected}, found {name[:80]!r} {kind}")
    if "frame" not in tensors:
        raise Refused(400, "inputs: expected frame, found none")
    frames = tensors["frame"][1]
    if frames.ndim != 4 or not len(frames) or frames.shape[1:] != (spec.height, spec.width, 3):
        raise Refused(400, f"frame: expected the shape [B, {spec.height}, {spec.width}, 3], found {list(frames.shape)}")
    return Asked(identity, frames, _thresholds(tensors, spec), _outputs(data, parameters))


def _thresholds(tensors: dict[str, tuple[str, NDArray[Any]]], spec: EngineSpec) -> tuple[float, ...] | None:
    if "thresholds" not in tensors:
        return None
    values = tensors["thresholds"][1]
    if values.ndim != 1 or len(values) != len(spec.thresholds) or not (np.isfinite(values) & (values > 0)).all():
        raise Refused(
            400,
            f"thresholds: expected {len(spec.thresholds)} finite numbers above 0, found {values.ravel()[:8].tolist()} "
            f"of the shape {list(values.shape)}",
        )
    return tuple(values.tolist())


def _inputs(given: Any, binary: memoryview) -> dict[str, tuple[str, NDArray[Any]]]:
    """The tensors by name, each with its type, from the JSON and from the bytes behind it."""
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise Refused(400, "inputs: expected a list of tensors, found none")
    found: dict[str, tuple[str, NDArray[Any]]] = {}
    start = 0
    for one in given:
        name, kind, shape = one.get("name"), one.get("datatype"), one.get("shape")
        parameters = one.get("parameters", {})
        if not isinstance(name, str) or name in found:
            raise Refused(400, f"inputs: expected tensors with different names, found {repr(name)[:80]}")
        if not isinstance(kind, str) or kind not in TYPES:
            raise Refused(400, f"{name[:80]}: expected a datatype of {', '.join(TYPES)}, found {repr(kind)[:40]}")
        sides: list[Any] = shape if isinstance(shape, list) else [None]
        if len(sides) > MOST_SIDES or not all(type(side) is int and 0 <= side < 1 << 31 for side in sides):
            raise Refused(
                400, f"{name[:80]}: expected a shape of at most {MOST_SIDES} whole numbers, found {repr(shape)[:80]}"
            )
        _refuse_extensions(name, parameters)
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            values = _listed(name, one.get("data"), kind)
        else:
            wanted = math.prod(sides) * np.dtype(TYPES[kind]).itemsize
            left = len(binary) - start
            if type(size) is not int or size != wanted or size > left:
                raise Refused(
                    400,
                    f"{name[:80]}: expected {wanted} bytes of a tensor {kind} {sides}, found binary_data_size "
                    f"{repr(size)[:40]}, and {left} bytes",
                )
            values = np.frombuffer(binary[start : start + size], TYPES[kind])
            start += size
        if values.size != math.prod(sides):
            raise Refused(
                400, f"{name[:80]}: expected {math.prod(sides)} values of the shape {sides}, found {values.size}"
            )
        found[name] = (kind, values.reshape(sides))
    if start != len(binary):
        raise Refused(400, f"inputs: expected {start} bytes behind the JSON, found {len(binary)}")
    return found


def _listed(name: str, data: Any, kind: str) -> NDArray[Any]:
    """Values in JSON, flat or nested. Raises Refused where they are not of the type."""
    try:
        # As objects first: NumPy would make each a text as long as the longest.
        flat = np.array(data, object).ravel().tolist()
        if not {int, float}.issuperset(map(type, flat)):
            raise ValueError
        if not flat:
            return np.empty(0, TYPES[kind])
        values = np.array(flat)
        whole = values.dtype.kind in "iu"
        if values.dtype.kind not in ("iu" if kind != "FP32" else "iuf"):
            raise ValueError
        if whole and kind != "FP32":
            limits = np.iinfo(TYPES[kind])
            if values.size and not limits.min <= int(values.min()) <= int(values.max()) <= limits.max:
                raise ValueError
        with np.errstate(over="ignore"):  # inf is for who reads the values
            return values.astype(TYPES[kind]).ravel()
    except (ValueError, OverflowError, TypeError, RecursionError):
        raise Refused(400, f"{name[:80]}: expected data, a list of {kind} values, found something else") from None


def _refuse_extensions(name: str, parameters: Any) -> None:
    """Raise Refused where a tensor asks for an extension that would be left out: its client waits for other data."""
    for word in NOT_OURS:
        if isinstance(parameters, dict) and word in parameters:
            raise Refused(400, f"{name[:80]}: expected data in JSON or binary, found {word}; leave it out")


def _outputs(data: dict[str, Any], parameters: dict[str, Any]) -> dict[str, bool]:
    known = ("labels", "segments")
    default = parameters.get("binary_data_output") is True
    asked = data.get("outputs")
    if asked is None or asked == []:
        return dict.fromkeys(known, default)
    found: dict[str, bool] = {}
    for one in asked if isinstance(asked, list) else [None]:
        name = one.get("name") if isinstance(one, dict) else None
        if not isinstance(one, dict) or name not in known:
            raise Refused(400, f"outputs: expected some of {', '.join(known)}, found {repr(name)[:80]}")
        own = one.get("parameters", {})
        _refuse_extensions(name, own)
        found[name] = own.get("binary_data", default) is True if isinstance(own, dict) else default
    return found


def answer(name: str, asked: Asked, arrays: dict[str, tuple[str, NDArray[Any]]]) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON where binary tensors follow it. `arrays`: type and values."""
    outputs, binary = [], []
    for output, is_binary in asked.outputs.items():
        kind, values = arrays[output]
        one: dict[str, Any] = {"name": output, "datatype": kind, "shape": list(values.shape)}
        if is_binary:
            data = values.astype(TYPES[kind]).tobytes()
            one["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            one["data"] = values.ravel().tolist()
        outputs.append(one)
    head: dict[str, Any] = {"model_name": name, "model_version": VERSION, "outputs": outputs}
    if asked.identity is not None:
        head["id"] = asked.identity
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join([text, *binary]), len(text) if binary else None

"""What `config.pbtxt` says of an engine: its tensors, how requests are batched, where it runs, and a first request.

The fields are those of Triton's ModelConfig:
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runtime.engine.heads import HEADS
from runtime.hosts.triton.pbtxt import Word

if TYPE_CHECKING:
    from runtime.engine.spec import EngineSpec
    from runtime.pyramid.config import MergeConfig

THRESHOLDS = "thresholds"  # the input, and the file with its values for the first request
_WORDS = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float": "FP32", "half": "FP16", "float32": "FP32"}


def python_config(
    name: str,
    spec: EngineSpec,
    config: MergeConfig,
    labels: str,
    *,
    device: str,
    most: int,
    parameters: Mapping[str, str],
) -> dict[str, Any]:
    """For the Python backend, where the runtime takes frames of any size, and frames of several requests together.

    Args:
        name: of the model.
        spec: of the engine.
        config: of the merge.
        labels: the type of the labels, UINT8 or INT32.
        device: auto (what Triton finds), cpu, cuda (one instance on each GPU) or cuda:N.
        most: frames that are given to the runtime together.
        parameters: what `runtime.hosts.triton.model` reads.
    """
    frame = {"name": "frame", "data_type": _type("UINT8"), "dims": [-1, -1, 3], "allow_ragged_batch": True}
    inputs: list[dict[str, Any]] = [frame]
    if HEADS[spec.head].route != "features":
        count = len(config.thresholds)
        inputs.append({"name": THRESHOLDS, "data_type": _type("FP32"), "dims": [count], "optional": True})
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": most,
        "input": inputs,
        "output": [
            {"name": "labels", "data_type": _type(labels), "dims": [-1, -1]},
            {"name": "segments", "data_type": _type("INT32"), "dims": [1]},
        ],
        "dynamic_batching": {},
        **_instances(device),
        "model_warmup": [_first_request({"frame": _drawn([spec.height, spec.width, 3], _type("UINT8"))})],
        "parameters": _parameters(parameters),
    }


def graph_config(
    name: str,
    spec: EngineSpec,
    types: Mapping[str, str],
    *,
    device: str,
    most: int,
    parameters: Mapping[str, str],
) -> dict[str, Any]:
    """For Triton's own backends, ONNX Runtime and TensorRT, which give what the graph gives.

    Args:
        name: of the model.
        spec: of an engine with the head labels.
        types: tensor → type of the graph's outputs, "uint8", "int32", "float".
        device: as of `python_config`.
        most: frames that Triton may run together, all with the thresholds that the file has. 0: Triton runs each
            request by itself, with thresholds of its own; `dims` then have the batch's dimension.
        parameters: of the backend.
    """
    head, batch = HEADS[spec.head], [] if most else [spec.batch or -1]
    backend = {"backend": "tensorrt"} if spec.plan is not None else {"backend": "onnxruntime"}
    size = [int(side) for side in spec.frame_input.shape(None, spec.height, spec.width)[1:] if side is not None]
    kind = _type(spec.frame_input.type)
    inputs: list[dict[str, Any]] = [{"name": "frame", "data_type": kind, "dims": batch + size}]
    first = {"frame": _drawn(size if most else [spec.batch or 1, *size], kind)}
    for each in head.inputs if not most else ():
        count = len(each.default(spec))
        inputs.append({"name": each.name, "data_type": _type("FP32"), "dims": [count]})
        if spec.plan is None:  # the file has values for what a request leaves out
            inputs[-1]["optional"] = True
        else:
            first[each.name] = {"data_type": _type("FP32"), "dims": [count], "input_data_file": each.name}
    outputs = []
    for output, (_, *sides) in head.outputs(spec).items():
        shape: dict[str, Any] = {"dims": batch + sides}
        if not shape["dims"]:  # Triton's tensors have a dimension beside the batch's
            shape = {"dims": [1], "reshape": {"shape": []}}
        outputs.append({"name": output, "data_type": _type(types[output]), **shape})
    return {
        "name": name,
        **backend,
        "max_batch_size": most,
        "input": inputs,
        "output": outputs,
        **({"dynamic_batching": {}} if most else {}),
        **_instances(device),
        "model_warmup": [_first_request(first)],
        **({"parameters": _parameters(parameters)} if parameters else {}),
    }


def _type(name: str) -> Word:
    return Word(f"TYPE_{_WORDS.get(name, name)}")


def _drawn(dims: list[int], kind: Word) -> dict[str, Any]:
    return {"data_type": kind, "dims": dims, "random_data": True}


def _first_request(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A request that Triton makes before it says that the model is ready: libraries choose and allocate then."""
    named = [{"key": name, "value": value} for name, value in inputs.items()]
    return {"name": "first", "batch_size": 1, "inputs": named}


def _instances(device: str) -> dict[str, Any]:
    kind, _, number = device.partition(":")
    if kind == "auto":
        return {}
    group: dict[str, Any] = {"count": 1, "kind": Word("KIND_CPU" if kind == "cpu" else "KIND_GPU")}
    return {"instance_group": [group | ({"gpus": [int(number)]} if number else {})]}


def _parameters(given: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": name, "value": {"string_value": value}} for name, value in given.items()]

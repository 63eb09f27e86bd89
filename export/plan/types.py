"""Types and precision of a plan, read from what TensorRT parsed and built."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.engine.backends.tensorrt_library import tensor_shapes
from runtime.engine.spec import EngineSpec
from runtime.errors import DiffSegError

PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
COUNTED = ("CONVOLUTION", "MATRIX_MULTIPLY", "SOFTMAX")


def check_network(
    trt: Any, network: Any, spec: EngineSpec, path: Path
) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Check what TensorRT parsed; returns the types of inputs and outputs, and how often the arithmetic has each type.

    Raises DiffSegError when shapes or precision differ from the engine's description. TensorRT builds a strongly typed
    graph as it is: a graph that lost its precision would build without an error and run many times slower.
    """
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    found, expected = {tensor.name: tuple(tensor.shape) for tensor in tensors}, tensor_shapes(spec)
    if found != expected:
        raise DiffSegError(f"{path} takes and gives {found}, its metadata says {expected}; export it again")
    counts: dict[str, Counter[str]] = {kind.lower(): Counter() for kind in COUNTED}
    kinds = {getattr(trt.LayerType, kind): kind.lower() for kind in COUNTED}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in kinds:
            name = layer.get_input(0).dtype.name
            counts[kinds[layer.type]][PRECISIONS.get(name, name.lower())] += 1
    if not all(spec.precision in counts[kind] for kind in ("convolution", "matrix_multiply")) or (
        spec.precision == "fp32" and len(counts["convolution"] + counts["matrix_multiply"]) > 1
    ):
        raise DiffSegError(
            f"{path} says {spec.precision}, TensorRT reads {_text(counts)}; its plan would not have that "
            f"precision; export it again with --precision {spec.precision}"
        )
    exposed = sum(level.layers for level in spec.levels)
    if counts["softmax"]["fp32"] < exposed or set(counts["softmax"]) != {"fp32"}:
        raise DiffSegError(
            f"{path}: expected every softmax in fp32, of {exposed} attention layers at least, TensorRT reads "
            f"{_text(counts)}; export it again"
        )
    types = {tensor.name: tensor.dtype.name.lower() for tensor in tensors}
    return types, {kind: dict(count) for kind, count in counts.items()}


def inspect_plan(trt: Any, logger: Any, content: memoryview, version_compatible: bool = False) -> dict[str, int] | None:
    """How many layers of the built plan give each type, by TensorRT's engine inspector; None if it does not tell."""
    runtime = trt.Runtime(logger)  # it must outlive its engine
    if version_compatible:
        runtime.engine_host_code_allowed = True  # otherwise the plan does not load and is not checked
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        return None
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return layer_types(text) or None


def precision_doubt(counts: Mapping[str, int] | None, precision: str) -> str | None:
    """A warning where the layers of a built plan show float32 and never the engine's precision; None otherwise.

    Not an error: `check_network` has seen the precision of what TensorRT reads, and the inspector shows only what fused
    layers give, which for the maps is float32.
    """
    if not counts or not counts.get("fp32") or counts.get(precision):
        return None
    return (
        f"the engine is {precision}, and TensorRT's inspector shows no layer of the plan that gives it: "
        f"{dict(counts)}; if the plan is slower than expected, report this with TensorRT's version"
    )


def layer_types(text: str) -> dict[str, int]:
    """Count the types of the layers' first outputs in the engine inspector's JSON; empty if it is not valid JSON."""
    words = {"bf16": ("BF16", "BFLOAT16"), "fp16": ("FP16", "HALF"), "fp32": ("FP32", "FLOAT")}
    counts: Counter[str] = Counter()
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return {}
    for layer in layers:
        outputs = layer.get("Outputs") if isinstance(layer, dict) else None
        if outputs:
            # TensorRT 10 has one field for both; 11 has two.
            found = " ".join(str(value) for name, value in outputs[0].items() if "type" in name.lower()).upper()
            named = (name for name, spellings in words.items() if any(word in found for word in spellings))
            counts[next(named, "other")] += 1
    return dict(counts)


def _text(counts: Mapping[str, Mapping[str, int]]) -> str:
    return ", ".join(f"{n} {kind} in {name}" for kind, count in counts.items() for name, n in count.items())

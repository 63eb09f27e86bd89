"""Network → ONNX file: tracing, clean-up, metadata."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.graph.count import Cost, graph_cost
from export.progress import Stages
from runtime.engine.spec import METADATA_KEY, EngineSpec, sidecar_path
from runtime.errors import DiffSegError
from runtime.files import write_atomically

if TYPE_CHECKING:
    import onnx_ir
    from torch import nn

OPSET = {"fp32": 21, "fp16": 21, "bf16": 22}  # 22 is the first opset whose Conv takes bfloat16


def write_onnx(network: "nn.Module", spec: EngineSpec, path: Path, stages: Stages) -> Cost:
    """Trace `network` for the frames that `spec` describes and write `path` with its metadata and sidecar.

    Weights above 1.5 GB go to `<path>.data`. Where the spec says so, float32 weights are stored as float16, which
    halves the file; the arithmetic stays float32. Tracing runs on shapes only: it needs no more memory than weights.
    Returns what the graph costs.
    """
    import onnx_ir

    with stages("trace"):
        program = _trace(network, spec)
    model = program.model
    # The maps inside a labels engine keep their names, by which a check finds them.
    del model.graph.outputs[len(spec.outputs) :]
    _clean(model)
    _fill_at_load(model)
    if spec.storage == "fp16" and spec.precision == "fp32":
        _store_as_float16(model)
    model.producer_name, model.producer_version = "diffseg", spec.producer.get("diffseg", "")
    model.metadata_props[METADATA_KEY] = spec.to_json()
    model.doc_string = None
    large = sum(value.const_value.nbytes for value in model.graph.initializers.values()) > 1.5e9
    with stages("write"):
        onnx_ir.save(model, path, external_data=f"{path.name}.data" if large else None)
    write_atomically(sidecar_path(path), spec.to_json().encode())
    return graph_cost(model, spec.batch or 1)


@contextmanager
def attention_part(path: Path, spec: EngineSpec) -> Iterator[Path]:
    """The attention engine that a labels engine contains, as a temporary file beside it: its maps can be checked.

    Raises DiffSegError when the maps are not found by their names, OSError when nothing can be written there.
    """
    import onnx_ir

    model = onnx_ir.load(path)
    values = {value.name: value for node in model.graph for value in node.outputs}
    missing = [level.output for level in spec.levels if level.output not in values]
    if missing:
        raise DiffSegError(f"{path} has no values {', '.join(missing)} to check; export the engine again")
    model.graph.outputs[:] = [values[level.output] for level in spec.levels]
    # Backwards from the maps: the library's own pass keeps loops that nothing uses.
    needed, waiting = set(), [values[level.output].producer() for level in spec.levels]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in needed:
            needed.add(node)
            waiting += [value.producer() for value in node.inputs if value is not None]
    model.graph.remove([node for node in model.graph if node not in needed])
    del model.graph.inputs[1:]
    model.metadata_props[METADATA_KEY] = replace(spec, head="attention").to_json()
    part = path.with_name(f".{uuid.uuid4().hex}.onnx")
    try:
        onnx_ir.save(model, part)
        yield part
    finally:
        part.unlink(missing_ok=True)


def _trace(network: "nn.Module", spec: EngineSpec) -> Any:
    import contextlib
    import io
    import warnings

    import torch

    dynamic = spec.batch is None
    # A dynamic batch is traced with 2: torch.export takes 1 for a constant.
    frame = torch.zeros(2 if dynamic else spec.batch or 1, spec.height, spec.width, 3, dtype=torch.uint8)
    inputs = {"frame": frame}
    if spec.head == "labels":
        inputs["thresholds"] = torch.tensor(spec.thresholds)
    first = {0: torch.export.Dim("batch", min=1)}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET[spec.precision],
            input_names=list(inputs),
            output_names=list(dict.fromkeys((*spec.outputs, *(level.output for level in spec.levels)))),
            dynamic_shapes=tuple(first if name == "frame" else None for name in inputs) if dynamic else None,
            verbose=False,
        )
    assert program is not None
    return program


def _clean(model: "onnx_ir.Model") -> None:
    """Drop the tracer's notes (half of a small file) and weights stored twice."""
    from onnx_ir.passes import common

    common.InlinePass()(model)  # the bodies of loops are traced to functions
    common.DeduplicateInitializersPass(size_limit=2**62)(model)
    common.RemoveUnusedNodesPass()(model)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


def _fill_at_load(model: "onnx_ir.Model") -> None:
    """Replace large tensors of one repeated number, which tracing folds loops' starts to, by their shape."""
    import numpy as np
    import onnx_ir

    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.size < 2**14:
            continue
        numbers = tensor.numpy().ravel()
        if (numbers[:64] != numbers[0]).any() or (numbers != numbers[0]).any():
            continue
        shape = onnx_ir.Value(
            name=f"{value.name}_shape",
            shape=onnx_ir.Shape([len(tensor.shape)]),
            type=onnx_ir.TensorType(onnx_ir.DataType.INT64),
            const_value=onnx_ir.Tensor(np.array(tensor.shape, np.int64), name=f"{value.name}_shape"),
        )
        fill = onnx_ir.node("ConstantOfShape", [shape], {"value": onnx_ir.Tensor(numbers[:1].copy())})
        _replace(model, value, shape, fill)


def _replace(model: "onnx_ir.Model", value: "onnx_ir.Value", source: "onnx_ir.Value", node: "onnx_ir.Node") -> None:
    """Let `node`, which makes what the initialiser `value` held out of the initialiser `source`, take its place."""
    model.graph.insert_before(model.graph[0], node)
    node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
    value.replace_all_uses_with(node.outputs[0])
    del model.graph.initializers[str(value.name)]
    model.graph.register_initializer(source)


def _store_as_float16(model: "onnx_ir.Model") -> None:
    """Keep float32 initialisers that float16 holds exactly as that, followed by a Cast, which is folded at load."""
    import numpy as np
    import onnx_ir

    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != onnx_ir.DataType.FLOAT or tensor.size < 1024:
            continue
        exact, rounded = tensor.numpy(), tensor.numpy().astype(np.float16)
        if not np.array_equal(exact, rounded):
            continue
        half = onnx_ir.Value(
            name=f"{value.name}_fp16",
            shape=value.shape,
            type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT16),
            const_value=onnx_ir.Tensor(rounded, name=f"{value.name}_fp16"),
        )
        _replace(model, value, half, onnx_ir.node("Cast", [half], {"to": onnx_ir.DataType.FLOAT.value}))

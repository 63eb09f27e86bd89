"""ONNX graph → engine file, and the part of an engine file that gives its maps."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engine.spec import METADATA_KEY, EngineSpec, sidecar_path
from runtime.errors import DiffSegError
from runtime.files import write_atomically

if TYPE_CHECKING:
    import onnx_ir


def write_engine(model: "onnx_ir.Model", spec: EngineSpec, path: Path) -> None:
    """Write `model` to `path` with its metadata, and its sidecar.

    Weights above 1.5 GB go to `<path>.data`. If the spec says so, float32 weights are stored as float16, which halves
    the file; the arithmetic stays float32.
    """
    import onnx_ir

    _fill_at_load(model)
    if spec.storage == "fp16" and spec.precision == "fp32":
        _store_as_float16(model)
    model.producer_name, model.producer_version = "diffseg", spec.producer.get("diffseg", "")
    model.metadata_props[METADATA_KEY] = spec.to_json()
    model.doc_string = None
    weights = (value.const_value for value in model.graph.initializers.values())
    large = sum(tensor.nbytes for tensor in weights if tensor is not None) > 1.5e9
    onnx_ir.save(model, path, external_data=f"{path.name}.data" if large else None)
    write_atomically(sidecar_path(path), spec.to_json().encode())


@contextmanager
def attention_part(path: Path, spec: EngineSpec) -> Iterator[Path]:
    """Cut the attention engine out of an engine that has the maps as values inside: a temporary file beside `path`.

    Raises DiffSegError when there are no values of the maps' names, OSError when the file cannot be written.
    """
    import onnx_ir

    model = onnx_ir.load(path)
    values = {value.name: value for node in model.graph for value in node.outputs}
    missing = [level.output for level in spec.levels if level.output not in values]
    if missing:
        raise DiffSegError(
            f"{path}: expected values named {', '.join(missing)}, which the check needs, found none; export the "
            "engine again"
        )
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
    model.metadata_props[METADATA_KEY] = replace(spec, head="attention", words=()).to_json()
    part = path.with_name(f".{uuid.uuid4().hex}.onnx")
    try:
        onnx_ir.save(model, part)
        yield part
    finally:
        part.unlink(missing_ok=True)


def _fill_at_load(model: "onnx_ir.Model") -> None:
    """Replace large tensors of one repeated number (tracing makes them of the loops' start values) by their shape."""
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
    """Replace the initialiser `value` by `node`, which computes it from the smaller initialiser `source`."""
    model.graph.insert_before(model.graph[0], node)
    node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
    value.replace_all_uses_with(node.outputs[0])
    del model.graph.initializers[str(value.name)]
    model.graph.register_initializer(source)


def _store_as_float16(model: "onnx_ir.Model") -> None:
    """Store float32 initialisers as float16 and a Cast, folded at load, where float16 represents the values exactly."""
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

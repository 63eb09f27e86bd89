"""Network → ONNX graph, in memory."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from runtime.engine.spec import EngineSpec
from runtime.errors import DiffSegError

if TYPE_CHECKING:
    import onnx_ir
    from numpy.typing import NDArray
    from torch import nn

OPSET = {"fp32": 21, "fp16": 21, "bf16": 22}  # 22 is the first opset whose Conv takes bfloat16


def trace(network: "nn.Module", spec: EngineSpec, extra: "Mapping[str, NDArray[Any]]") -> "onnx_ir.Model":
    """Trace `network` for the frames that `spec` describes.

    `extra`: the inputs that follow the frame, by name, as examples. The network gives the outputs that `spec` names,
    and may give the pyramid after them: then the maps keep their names as values inside the graph, where a check finds
    them, and are not outputs. Tracing works on shapes: it needs no more memory than the weights.
    """
    import torch

    from export.graph.network import black_frames

    dynamic = spec.batch is None
    # A dynamic batch is traced with 2 frames: torch.export treats 1 as a constant.
    frame = black_frames(spec.frame_input, spec.height, spec.width, 2 if dynamic else spec.batch or 1)
    inputs = {"frame": frame} | {name: torch.from_numpy(value) for name, value in extra.items()}
    first = {0: torch.export.Dim("batch", min=1)}
    with explained(dynamic), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
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
    model = program.model
    del model.graph.outputs[len(spec.outputs) :]
    _clean(model)
    return model


@contextlib.contextmanager
def explained(dynamic: bool) -> "Iterator[None]":
    """What the tracer cannot do with a dynamic batch, as with words that need three prompts, in one line."""
    import torch

    try:
        yield
    except torch.onnx.OnnxExporterError as error:
        if not dynamic:
            raise
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise DiffSegError(
            f"--batch dynamic: PyTorch cannot trace this network so ({reason}); give --batch 1"
        ) from None


def _clean(model: "onnx_ir.Model") -> None:
    """Remove the tracer's notes (half of a small file) and weights that are stored twice."""
    from onnx_ir.passes import common

    common.InlinePass()(model)  # the tracer makes functions of the bodies of loops
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

"""Network → ONNX graph, in memory."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.engine.spec import EngineSpec
from runtime.errors import DiffSegError

if TYPE_CHECKING:
    import onnx_ir
    import torch
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
    outputs = tuple(dict.fromkeys((*spec.outputs, *(level.output for level in spec.levels))))
    return _traced(network, spec, inputs, outputs, {0: torch.export.Dim("batch", min=1)} if dynamic else None)


def trace_merge(spec: EngineSpec, prefix: str) -> "onnx_ir.Model":
    """Trace the merge of a labels engine alone, without the network: maps → labels, for one frame per call.

    Its inputs are the maps, by the names of the levels, and the thresholds; its outputs are those of `spec`. The names
    of all other values begin with `prefix`, so that the graph can follow another one.
    """
    import torch

    from export.graph.labels import LabelsHead, Merge

    head = LabelsHead(spec.levels, (spec.height, spec.width), spec.grid, spec.weights, spec.solver)
    inputs = {level.output: torch.zeros(1, *2 * (level.height * level.width,)) for level in spec.levels}
    inputs["thresholds"] = torch.tensor(spec.thresholds)
    model = _traced(Merge(head), spec, inputs, ("labels", "segments"), None)
    graphs = [model.graph, *model.graph.subgraphs()]
    own = {*model.graph.inputs, *model.graph.outputs}
    for graph in graphs:
        values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        for value in dict.fromkeys(values):
            if value not in own:
                value.name = f"{prefix}{value.name}"
        for node in graph:
            node.name = f"{prefix}{node.name}"
    return model


def _traced(
    network: "nn.Module",
    spec: EngineSpec,
    inputs: "Mapping[str, torch.Tensor]",
    outputs: Sequence[str],
    frames: "dict[int, Any] | None",
) -> "onnx_ir.Model":
    """The graph of `network`, whose outputs have these names; only those of `spec` stay outputs.

    `frames`: the frame's axes of any size.
    """
    import torch

    dynamic = frames is not None
    with explained(dynamic), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET[spec.precision],
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple(frames if name == "frame" else None for name in inputs) if dynamic else None,
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

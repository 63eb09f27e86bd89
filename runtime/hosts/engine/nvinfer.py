"""DeepStream's nvinfer: its configuration for a labels engine that takes planar float frames, and the model for it.

nvinfer feeds one input alone, and takes outputs of float or int32. So in its model the thresholds are constants and the
labels are int32. Keys: https://docs.nvidia.com/metropolis/deepstream/dev-guide/text/DS_plugin_gst-nvinfer.html
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.engine.onnx_file import read_engine
from runtime.engine.spec import EngineSpec
from runtime.errors import DiffSegError
from runtime.files import write_atomically
from runtime.hosts.engine.graph import Graph
from runtime.pyramid.config import MergeConfig, every_iteration
from runtime.terminal import options_named

LABELS = "labels"
_MODES = {"fp32": 0, "fp16": 2}  # nvinfer's network-mode


def write_nvinfer(engine: Path, output: Path, thresholds: float | Sequence[float] | None = None) -> list[Path]:
    """Write nvinfer's configuration to `output` and its model beside it, `<output's stem>.onnx`; returns both paths.

    `engine`: of the head `labels`, that takes planar float frames. `thresholds`: one per iteration, or one for all;
    None for the engine's own.
    Raises DiffSegError when nvinfer cannot run the engine, or a file cannot be read; OSError.
    """
    spec = read_engine(engine)
    remedy = "'python -m export MODEL --head labels --input float-nchw-rgb --output engines/NAME' makes one that it can"
    for wrong, found in (
        (spec.head != "labels", f"the head {spec.head}"),
        (not spec.frame_input.planar, f"frames {spec.frame_input}"),
        (spec.precision not in _MODES, f"the precision {spec.precision}"),
    ):
        if wrong:
            raise DiffSegError(
                f"{engine}: nvinfer runs engines with the head labels, planar float frames and the precision "
                f"{' or '.join(_MODES)}, found {found}; {remedy}"
            )
    model = output.with_suffix(".onnx")
    if model.resolve() == engine.resolve():
        raise DiffSegError(f"--output {output}: its model would replace the engine {engine}; choose another name")
    try:
        with options_named({"thresholds": "--threshold"}):
            wanted = every_iteration(thresholds, len(spec.thresholds), spec.thresholds)
            chosen = MergeConfig(wanted).thresholds
    except ValueError as error:
        raise DiffSegError(str(error)) from None
    graph = Graph(engine)
    graph.fix("thresholds", chosen)
    graph.as_int32(LABELS, (spec.batch or "batch", spec.height, spec.width))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(model, graph.to_bytes(None))
    write_atomically(output, configuration(spec, engine.name, model.name, chosen).encode())
    return [output, model]


def configuration(spec: EngineSpec, engine: str, model: str, thresholds: Sequence[float]) -> str:
    """The text of the configuration. `engine`, `model`: names of the engine file and of nvinfer's model."""
    scale = spec.frame_input.brightest / 255
    return f"""\
# nvinfer of DeepStream runs {engine} with the thresholds {", ".join(f"{number:g}" for number in thresholds)}.
# Written by `diffseg engine nvinfer`. Every frame gets the tensor {LABELS}, int32 [{spec.height}, {spec.width}], as
# NvDsInferTensorMeta: the number of each pixel's segment.
[property]
gpu-id=0
gie-unique-id=1
process-mode=1
onnx-file={model}
batch-size={spec.batch or 1}
network-mode={_MODES[spec.precision]}
network-type=100
network-input-order=0
infer-dims=3;{spec.height};{spec.width}
model-color-format=0
net-scale-factor={scale:.17g}
offsets=0;0;0
maintain-aspect-ratio=0
output-blob-names={LABELS}
output-tensor-meta=1
"""

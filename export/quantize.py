"""Int8: an engine's convolutions and linear layers are quantised after training, calibrated on photographs.

The products of attention, softmax, normalisation and everything between them stay float32. A quantised engine is kept
only if its labels agree with the original's on photographs that were not used for calibration.
"""

import logging
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.heads.registry import extra_inputs
from runtime.engine.spec import METADATA_KEY, EngineSpec, sidecar_path
from runtime.errors import DiffSegError
from runtime.files import write_atomically

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

LEAST = 0.95  # share of pixels that must keep their segment
HELD_OUT = 3  # one photograph in so many judges the engine, the others calibrate it
MOST_CALIBRATION = 48  # more photographs change the ranges little
LAYERS = ["Conv", "MatMul", "Gemm"]  # operators of convolutions and linear layers
TIMED = 7  # runs of each engine, in turns
# Ranges of the layers, in order of execution, as shares. They are tried in turn until the lower end of a 95 % interval
# of the mean over photographs is high enough; for the last one the mean is enough. In the tiny engine errors cost most
# in the first layers, which read the picture, and then in the last ones, which make the maps.
SPANS = ((0.0, 1.0), (0.25, 1.0), (0.25, 0.75))


@dataclass(frozen=True, slots=True)
class Quantized:
    """What a quantisation did.

    `layers`: how many convolutions and linear layers are quantised. `photographs`: how many judged it and had enough
    segments. `agreement`: mean share of their pixels that keep the segment. `gain`: how many times faster the engine is
    with `backend`.
    """

    layers: int
    photographs: int
    agreement: float
    gain: float
    backend: str


def quantize_engine(engine: Path, images: Sequence[str], output: Path, *, threshold: float | None = None) -> Quantized:
    """Quantise `engine` to `output`, calibrated and judged on the photographs in `images` (files, folders, globs).

    Where the photographs leave in doubt whether 95 % of the pixels keep their segment, fewer layers are quantised.
    `threshold`: KL threshold at which the labels are compared, None for the engine's own.
    Raises DiffSegError when the engine is not float32, there are too few photographs, none has enough segments, or
    fewer than 95 % of the pixels keep their segment; nothing is left at `output` then.
    """
    from runtime.engine.registry import open_engine
    from runtime.frames.decode import read_frame
    from runtime.frames.find import find_sources
    from runtime.frames.resize import resize_frame
    from runtime.segmenter import Segmenter

    original = Segmenter(open_engine(engine, "cpu", "onnxruntime"))
    spec = original.engine.spec
    if spec.precision != "fp32":
        raise DiffSegError(f"{engine} has precision {spec.precision}, expected fp32; export it with --precision fp32")
    sources, failures = find_sources(list(images))
    if failures:
        raise DiffSegError(failures[0])
    photographs = [source.path for source in sources]
    judges, calibration = photographs[::HELD_OUT], [p for i, p in enumerate(photographs) if i % HELD_OUT]
    if not calibration:
        raise DiffSegError(f"expected at least {HELD_OUT} photographs, found {len(photographs)}; pass more --images")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.stem}.", suffix=".part", dir=output.parent) as folder:
        part = Path(folder) / output.name
        for span in SPANS:
            frames = (
                resize_frame(read_frame(path), spec.height, spec.width) for path in calibration[:MOST_CALIBRATION]
            )
            layers = write_quantized(engine, spec, frames, part, span)
            shares = _judge(original, part, (read_frame(path) for path in judges), threshold)
            agreement = statistics.mean(shares)
            doubt = 1.96 * statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else math.inf
            if agreement - doubt >= LEAST:
                break
        if agreement < LEAST:
            raise DiffSegError(
                f"labels of the int8 engine agree on {agreement:.1%} of the pixels, expected {LEAST:.0%}, even with "
                "half of the layers in float; no engine was left; pass more --images like those it will see, or stay "
                "with the float engine"
            )
        backend, gain = _gain(engine, part)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == output.name):
            file.replace(output.parent / file.name)
    return Quantized(layers, len(shares), agreement, gain, backend)


def write_quantized(
    engine: Path,
    spec: EngineSpec,
    frames: Iterator["NDArray[np.uint8]"],
    path: Path,
    span: tuple[float, float] = SPANS[0],
) -> int:
    """Write the quantised engine and its sidecar to `path`; returns how many layers are int8.

    `frames`: uint8 [H, W, 3] BGR of the engine's size, which calibrate it. `span`: the range of layers to quantise, as
    shares in order of execution; the others stay float.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    extra = extra_inputs(spec)

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def get_next(self) -> dict[str, Any] | None:
            frame = next(frames, None)
            if frame is None:
                return None
            return {"frame": spec.frame_input.convert(np.repeat(frame[None], spec.batch or 1, axis=0))} | extra

    model = onnx.load(engine)
    _unpack_weights(model)
    layers = _layers(model)
    layers = layers[round(span[0] * len(layers)) : round(span[1] * len(layers))]
    large = sum(tensor.ByteSize() for tensor in model.graph.initializer) > 1.5e9
    plain = path.with_name("float.onnx")
    onnx.save(model, plain, save_as_external_data=large, location="float.data" if large else None)
    del model
    # It warns that the graph was not prepared; the export has done that.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            plain,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # the multipliers of x86 take unsigned by signed
            weight_type=QuantType.QInt8,
            nodes_to_quantize=layers,
            op_types_to_quantize=LAYERS,  # every range that is measured costs memory
            use_external_data_format=large,
            extra_options={
                # The arithmetic between layers is float32: each layer takes int8 and gives float32.
                "QDQKeepRemovableActivations": True,
                "OpTypesToExcludeOutputQuantization": LAYERS,
                "CalibMovingAverage": True,  # one photograph of wide range would coarsen all others
            },
        )
    finally:
        logging.disable(before)
    for file in path.parent.glob("float.*"):
        file.unlink()
    described = replace(spec, precision="int8", storage="int8")
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {METADATA_KEY: described.to_json()})
    onnx.save(model, path)
    write_atomically(sidecar_path(path), described.to_json().encode())
    return len(layers)


def _unpack_weights(model: "onnx.ModelProto") -> None:
    """Turn the float16 weights of a compact engine into float32 initialisers: only those can be quantised."""
    from onnx import numpy_helper

    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Cast" and node.input[0] in stored]:
        wide = numpy_helper.to_array(stored[node.input[0]]).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(wide, node.output[0]))
        graph.node.remove(node)


def _layers(model: "onnx.ModelProto") -> list[str]:
    """Names of the convolutions and linear layers that may be quantised; a linear layer has a constant matrix.

    The encoder's first convolution stays float32, because its input is the picture. The layers that give attention its
    queries, keys and values stay float32, because their error is an error of the map.
    """
    constants = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    first = next((node.name for node in model.graph.node if node.op_type == "Conv"), None)
    kept = {first}
    for node in model.graph.node:
        if node.op_type == "MatMul" and constants.get(node.input[1]) != 2:
            names = list(node.input)
            while names:
                source = producers.get(names.pop())
                if source is not None and source.name not in kept:
                    kept.add(source.name)
                    if source.op_type not in ("Conv", "MatMul", "Gemm", "LayerNormalization", "GroupNormalization"):
                        names += source.input
    return [
        node.name
        for node in model.graph.node
        if node.name not in kept
        and (node.op_type == "Conv" or (node.op_type in ("MatMul", "Gemm") and constants.get(node.input[1]) == 2))
    ]


def _judge(
    original: Any, path: Path, photographs: Iterator["NDArray[np.uint8]"], threshold: float | None
) -> list[float]:
    """Of every photograph with enough segments the share of its pixels that keep the segment."""
    from export.check.agreement import matched_agreement, says_something
    from runtime.engine.registry import open_engine
    from runtime.options import settle_options
    from runtime.segmenter import Segmenter

    config = settle_options(original.config, thresholds=threshold)[0]
    quantised = Segmenter(open_engine(path, "cpu", "onnxruntime"), config)
    original = Segmenter(original.engine, config)
    shares = []
    for frame in photographs:
        expected = original(frame).labels
        if says_something(expected):
            shares.append(matched_agreement(quantised(frame).labels, expected))
    if not shares:
        raise DiffSegError(
            "the int8 engine cannot be judged: expected photographs with four segments of at least 1 % among those not "
            "used for calibration, found none; pass more --images, or a lower --threshold"
        )
    return shares


def _gain(before: Path, after: Path) -> tuple[str, float]:
    """The backend that this machine chooses, and how many times faster it runs the second engine.

    A CPU is measured in processor time of one thread, which other programs disturb least.
    """
    from runtime.engine.registry import open_engine

    engines = [open_engine(path, "auto", threads=1) for path in (before, after)]
    clock = time.process_time if engines[0].device == "cpu" else time.perf_counter
    spec = engines[0].spec
    frames = np.random.default_rng(0).integers(0, 256, (spec.batch or 1, spec.height, spec.width, 3), np.uint8)
    times: list[list[float]] = [[], []]
    for _ in range(TIMED):
        for engine, runs in zip(engines, times, strict=True):
            start = clock()
            engine.infer(frames)
            runs.append(clock() - start)
    name = type(engines[0]).__module__.rpartition(".")[2]
    return name, statistics.median(times[0][1:]) / statistics.median(times[1][1:])

"""Holding an engine to PyTorch: the same frame through both, every output compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.check.labels import LabelsCheck, compare_labels
from runtime.engine.spec import EngineSpec, sidecar_path
from runtime.errors import DiffSegError
from runtime.files import read_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Mean KL divergence (nats) between an engine's rows and PyTorch's in float32. What is measured lies ten to a hundred
# times lower; a wrong timestep, prompt, scale or block exceeds the bound by far more.
BOUND = 1e-6
# Half precision is held to what PyTorch's own bfloat16 costs the same model on the same frame, for some models suffer
# a thousand times more than others: a bfloat16 engine may err four times as much (as
# an error twice as large makes it); float16 rounds 8 times finer, which makes
# a KL 64 times smaller, and has to show a quarter of that.
HALF_PRECISION = {"fp16": 1 / 16, "bf16": 4.0}
HALF_BOUND = 1e-4
ROW_SUM_BOUND = 1e-3


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """One output against PyTorch: worst and mean absolute error, mean KL of rows, worst row sum error."""

    output: str
    worst: float
    mean: float
    divergence: float
    row_sum: float
    finite: bool
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the output is finite, its rows sum to 1 and its divergence is within the bound."""
        return self.finite and self.row_sum <= ROW_SUM_BOUND and self.divergence <= self.bound


def random_frame(height: int, width: int, seed: int = 0) -> "NDArray[np.uint8]":
    """A frame with structure at every scale, uint8 [height, width, 3]: noise of octaves from 4 pixels to the whole."""
    import cv2

    rng = np.random.default_rng(seed)
    frame = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 7):
        noise = rng.normal(size=(2**octave, 2**octave, 3)).astype(np.float32)
        frame += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 0.75**octave
    return np.clip(127 + 70 * frame, 0, 255).astype(np.uint8)


def compare(
    spec: EngineSpec,
    found: Sequence["NDArray"],
    expected: Sequence["NDArray"],
    half: Sequence["NDArray"] | None = None,
) -> list[OutputCheck]:
    """Compare pyramids level by level; `half`: PyTorch's own in bfloat16, the measure for an engine in half precision.

    Raises DiffSegError when their shapes differ.
    """
    shapes = ([m.shape for m in found], [m.shape for m in expected])
    if shapes[0] != shapes[1]:
        raise DiffSegError(f"the engine gives maps of shapes {shapes[0]}, PyTorch {shapes[1]}; export it again")
    bounds = [BOUND] * len(expected)
    if half is not None:
        factor = HALF_PRECISION[spec.precision]
        bounds = [max(HALF_BOUND, factor * mean_divergence(h, e)) for h, e in zip(half, expected, strict=True)]
    return [
        _compare_output(level.output, ours, theirs, bound)
        for level, ours, theirs, bound in zip(spec.levels, found, expected, bounds, strict=True)
    ]


def mean_divergence(found: "NDArray", expected: "NDArray") -> float:
    """Mean over rows of KL(expected ‖ found) in nats, in double precision: float32 logarithms do not resolve 1e-6."""
    divergence = 0.0
    for ours, theirs in zip(found.reshape(-1, found.shape[-1]), expected.reshape(-1, found.shape[-1]), strict=True):
        p, q = np.maximum(theirs.astype(np.float64), 1e-12), np.maximum(ours.astype(np.float64), 1e-12)
        divergence += float(p @ np.log(p / q)) + float(q.sum() - p.sum())
    return divergence / (found.size / found.shape[-1])


def _compare_output(name: str, found: "NDArray", expected: "NDArray", bound: float) -> OutputCheck:
    finite = bool(np.isfinite(found).all())
    difference = np.abs(found.astype(np.float32) - expected)
    return OutputCheck(
        name,
        float(difference.max()),
        float(difference.mean()),
        mean_divergence(found, expected),
        float(np.abs(found.sum(-1, dtype=np.float64) - 1).max()),
        finite,
        bound,
    )


def check_engine(
    path: Path, model: str, *, vae: str | None = None, config: str | None = None
) -> list[OutputCheck | LabelsCheck]:
    """Run a random frame through the engine and through an untouched `model`, and compare every output.

    Timestep, prompt and size are the engine's own; `vae` and `config` are those of the export. PyTorch goes first
    and is freed before the engine is loaded, so the two never share the memory. A labels engine's labels are compared
    with those of the merge core on PyTorch's maps. Raises DiffSegError when either cannot be loaded.
    """
    from export.check.eager import eager_pyramid
    from export.model.load import load_pipeline
    from runtime.engine.registry import open_engine

    sidecar = sidecar_path(path)
    described = sidecar.exists()
    spec = EngineSpec.from_json(read_text(sidecar), str(sidecar)) if described else open_engine(path, "cpu").spec
    if spec.precision == "int8":
        raise DiffSegError(
            f"{path} is an int8 engine, which is held to photographs and not to PyTorch; expected fp32, fp16 or bf16: "
            "'python -m export quantize' judges int8 as it makes it"
        )
    # ONNX Runtime has no bfloat16 on the CPU; in float32 it is exact on every CPU. OpenVINO in "fp32" keeps to the
    # graph's own types: its default would bring the softmax and the maps, too, to bfloat16.
    bf16 = spec.precision == "bf16"
    backend, options = ("openvino", {"precision": "fp32", "cache": ""}) if bf16 else ("onnxruntime", {})
    frames = np.stack([random_frame(spec.height, spec.width, seed) for seed in range(spec.batch or 1)])

    def eager(precision: str) -> list["NDArray[np.float32]"]:
        try:
            pipeline = load_pipeline(
                model,
                spec.prompt,
                precision,
                storage=spec.storage,
                revision=spec.revision,
                vae=vae or spec.vae,
                config=config,
            )
        except DiffSegError as error:
            if spec.vae is None or vae is not None:
                raise
            raise DiffSegError(
                f"this engine has the VAE {spec.vae!r}; pass its folder or id by --vae ({error})"
            ) from None
        return eager_pyramid(pipeline, frames, spec.timestep, spec.blocks, noise_seed=spec.noise_seed)

    expected = eager("fp32")
    half = None if spec.precision == "fp32" else eager("bf16")
    engine = open_engine(path, "cpu", backend, **options)
    if spec.head == "labels":
        from export.graph.trace import attention_part

        # Labels alone would let much pass: the maps they come from are held to PyTorch as well.
        with attention_part(path, spec) as part:
            pyramid = open_engine(part, "cpu", backend, **options).infer(frames)
    else:
        pyramid = engine.infer(frames)
    checks = compare(spec, pyramid, expected, half)
    if not all(check.finite for check in checks):
        return [*checks]  # maps that are not finite have no labels
    return [*checks, compare_labels(engine, frames, expected, half, None if spec.head == "labels" else pyramid)]

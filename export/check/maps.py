"""An engine's attention maps compared with PyTorch's on the same frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from runtime.engine.spec import EngineSpec
from runtime.errors import DiffSegError
from runtime.merge.divergence import SMALLEST_PROBABILITY

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Mean KL divergence (nats) between an engine's rows and PyTorch's in float32. Measured values are ten to a hundred
# times lower; a wrong timestep, prompt, scale or block gives values more than a hundred times higher.
BOUND = 1e-6
# Models differ a thousandfold in what half precision costs them. The measure is therefore the KL of PyTorch's own
# bfloat16 on the same frame. A bfloat16 engine may have four times that KL, which is an error twice as large. float16
# rounds 8 times finer, so its KL should be 64 times smaller; 16 times smaller is demanded.
HALF_PRECISION = {"fp16": 1 / 16, "bf16": 4.0}
HALF_BOUND = 1e-4
ROW_SUM_BOUND = 1e-3


class Check(Protocol):
    """The result of a comparison with PyTorch; its text is one line for people."""

    @property
    def passed(self) -> bool:
        """Whether the engine may be kept."""
        ...

    @property
    def verdict(self) -> str:
        """A word or two for the report."""
        ...


@dataclass(frozen=True, slots=True)
class Reference:
    """What an engine is compared with.

    `frames`: uint8 [B, H, W, 3] BGR, of the engine's size. `expected`: what PyTorch gives for them in float32:
    attention maps, finest first, float32 [B, n, n] each, or features, one float32 [B, n, C]. `half`: what PyTorch gives
    in bfloat16, for an engine in half precision; else None.
    `words`, `half_words`: the same of an engine with words, float32 [B, words, h, w] each; else empty.
    """

    frames: "NDArray[np.uint8]"
    expected: Sequence["NDArray[np.float32]"]
    half: Sequence["NDArray[np.float32]"] | None = None
    words: Sequence["NDArray[np.float32]"] = ()
    half_words: Sequence["NDArray[np.float32]"] = ()


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """The maps of one resolution compared with PyTorch's.

    `worst`, `mean`: absolute error. `divergence`: mean KL of rows, in nats; `bound`: the largest that is accepted.
    `row_sum`: the largest error of a row's sum; `sum_bound`: the largest that is accepted. `finite`: whether all values
    are finite.
    """

    output: str
    worst: float
    mean: float
    divergence: float
    row_sum: float
    finite: bool
    bound: float
    sum_bound: float = ROW_SUM_BOUND

    @property
    def passed(self) -> bool:
        """Whether the output is finite, its rows have the right sums and its divergence is within the bound."""
        return self.finite and self.row_sum <= self.sum_bound and self.divergence <= self.bound

    @property
    def verdict(self) -> str:
        """ok or FAILED."""
        return "ok" if self.passed else "FAILED"

    def __str__(self) -> str:
        return (
            f"{self.output} has mean row KL {self.divergence:.1e} (bound {self.bound:.1e}), row sum error "
            f"{self.row_sum:.1e}, finite: {self.finite}"
        )


def random_frame(height: int, width: int, seed: int = 0) -> "NDArray[np.uint8]":
    """A frame uint8 [height, width, 3] with structure at every scale: six octaves of noise, 2×2 to 64×64."""
    import cv2

    rng = np.random.default_rng(seed)
    frame = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 7):
        noise = rng.normal(size=(2**octave, 2**octave, 3)).astype(np.float32)
        frame += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 0.75**octave
    return np.clip(127 + 70 * frame, 0, 255).astype(np.uint8)


def compare_maps(spec: EngineSpec, found: Sequence["NDArray"], reference: Reference) -> list[OutputCheck]:
    """Compare an engine's pyramid with PyTorch's, level by level. Raises DiffSegError when their shapes differ."""
    expected, half = reference.expected, reference.half
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
    """Mean over rows of KL(expected ‖ found) in nats, for maps [..., n].

    It is computed in double precision: float32 logarithms do not resolve 1e-6.
    """
    divergence = 0.0
    for ours, theirs in zip(found.reshape(-1, found.shape[-1]), expected.reshape(-1, found.shape[-1]), strict=True):
        p, q = (np.maximum(row.astype(np.float64), SMALLEST_PROBABILITY) for row in (theirs, ours))
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

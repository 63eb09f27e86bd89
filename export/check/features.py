"""An engine's features compared with PyTorch's on the same frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from export.check.maps import Reference
    from runtime.engine.spec import EngineSpec

# Relative error in float32. Random weights, which amplify rounding, give up to 6e-4 at full size; a wrong timestep,
# seed, prompt or block gives more than 0.3.
BOUND = 3e-3
# As for the maps, the measure for half precision is the error of PyTorch's own bfloat16 on the same frame. An error
# twice as large is four times the maps' KL divergence.
HALF_PRECISION = {"fp16": 1 / 4, "bf16": 2.0}
HALF_BOUND = 1e-2


@dataclass(frozen=True, slots=True)
class FeaturesCheck:
    """Features compared with PyTorch's.

    `error`: see `relative_error`, with its `bound`. `finite`: whether all values are finite.
    """

    output: str
    error: float
    bound: float
    finite: bool

    @property
    def passed(self) -> bool:
        """Whether the features are finite and within the bound."""
        return self.finite and self.error <= self.bound

    @property
    def verdict(self) -> str:
        """ok or FAILED."""
        return "ok" if self.passed else "FAILED"

    def __str__(self) -> str:
        return (
            f"{self.output} have a relative error of {self.error:.1e} (bound {self.bound:.1e}), finite: {self.finite}"
        )


def compare_features(spec: "EngineSpec", found: Sequence["NDArray"], reference: "Reference") -> list[FeaturesCheck]:
    """Compare an engine's features [B, n, C] with PyTorch's. Raises DiffSegError when their shapes differ."""
    (ours,), (theirs,) = found, reference.expected
    if ours.shape != theirs.shape:
        raise DiffSegError(f"the engine gives features {ours.shape}, PyTorch {theirs.shape}; export it again")
    bound = BOUND
    if reference.half is not None:
        bound = max(HALF_BOUND, HALF_PRECISION[spec.precision] * relative_error(reference.half[0], theirs))
    (name,) = spec.outputs
    return [FeaturesCheck(name, relative_error(ours, theirs), bound, bool(np.isfinite(ours).all()))]


def relative_error(found: "NDArray", expected: "NDArray") -> float:
    """Root of the mean squared error of features [B, n, C], over the deviation of `expected` between its tokens.

    What all tokens have in common is left out of the deviation: it cuts nothing, and it would hide an error.
    """
    wanted = expected.astype(np.float64)
    spread = np.square(wanted - wanted.mean(axis=1, keepdims=True)).sum()
    return float(np.sqrt(np.square(found - wanted).sum() / spread))

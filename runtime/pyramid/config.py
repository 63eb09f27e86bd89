"""Parameters of the merge."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from runtime.pyramid.solvers import solver_named
from runtime.pyramid.weights import Weighting, as_weights

MOST_TAU = 2.0  # no cut has a larger value


@dataclass(frozen=True, slots=True)
class MergeConfig:
    """Parameters of the merge; the defaults are the paper's for COCO-Stuff.

    Attributes:
        thresholds: KL threshold τ of every iteration; their number is the number of iterations.
        grid: anchors per axis, from 2 to the shorter side of the finest resolution.
        weights: of the resolutions in the aggregation: "proportional" to the side (the authors' code),
            "per-tensor" (the paper's text), or one number per resolution, finest first.
        solver: how maps become proposals: "merge" (the paper's), "kmeans" (the cluster means of K-means that starts
            from the merge's proposals), or another one that `runtime.pyramid.solvers` lists.
        tau: of the solver "ncut": the value that a cut must be below, above 0 and at most 2. None: the solver's own.
        alpha: of solvers that cut: the power of the affinity, above 0. None: the solver's own.

    Raises:
        ValueError: if a value is out of range.
    """

    thresholds: tuple[float, ...] = (1.1, 1.1, 1.1)
    grid: int = 16
    weights: Weighting = "proportional"
    solver: str = "merge"
    tau: float | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        try:
            thresholds = tuple(float(threshold) for threshold in self.thresholds)
        except (TypeError, ValueError, OverflowError):
            thresholds = ()
        if not thresholds or not all(np.isfinite(threshold) and threshold > 0 for threshold in thresholds):
            raise ValueError(
                "thresholds: expected one finite number above 0 per iteration and at least one, found "
                f"{self.thresholds!r}; give for example (1.1, 1.1, 1.1)"
            )
        if isinstance(self.grid, bool) or not isinstance(self.grid, (int, np.integer)) or self.grid < 2:
            raise ValueError(
                f"grid: expected a whole number of anchors per axis, at least 2, found {self.grid!r}; "
                "give for example 16"
            )
        solver = solver_named(self.solver)
        for name, most in (("tau", MOST_TAU), ("alpha", np.inf)):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, most)
                if name not in solver.reads:
                    raise ValueError(
                        f"{name}: belongs to solvers that cut, found the solver {self.solver!r}; "
                        "choose solver='ncut', or leave it out"
                    )
        object.__setattr__(self, "thresholds", thresholds)
        object.__setattr__(self, "grid", int(self.grid))
        object.__setattr__(self, "weights", as_weights(self.weights))


def check_number(name: str, value: Any, most: float = np.inf) -> None:
    """Raise ValueError unless a value is a finite number above 0, and at most `most`."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 < value <= most or value == np.inf:
        limit = "" if most == np.inf else f" and at most {most:g}"
        raise ValueError(f"{name}: expected a finite number above 0{limit}, found {value!r}; give for example 0.5")

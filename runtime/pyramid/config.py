"""Parameters of the merge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from runtime.errors import DiffSegError, shown
from runtime.pyramid.weights import Weighting, as_weights

LEAST = 1e-30  # of a threshold, and 1 / LEAST the most: float32 holds 2·n times as much
MOST_TAU = 2.0  # no cut has a larger value
MOST_ALPHA = 1000.0  # above it next to every affinity is 0
MOST_ITERATIONS = 100  # far beyond the iteration after which nothing merges any more


@dataclass(frozen=True, slots=True)
class MergeConfig:
    """Parameters of the merge; the defaults are the paper's for COCO-Stuff.

    Attributes:
        thresholds: KL threshold τ of every iteration; their number is the number of iterations.
        grid: anchors per axis, from 2 to the shorter side of the finest resolution.
        weights: of the resolutions in the aggregation: "proportional" to the side (the authors' code),
            "per-tensor" (the paper's text), or one number per resolution, finest first.
        solver: how maps become proposals: "merge" (the paper's), "kmeans" (the cluster means of K-means that starts
            from the merge's proposals), or another one that `runtime.merge.registry` lists. Whether there is a solver
            of that name is checked where a merge begins or a Segmenter opens.
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
            words = isinstance(self.thresholds, (str, bytes))
            thresholds = () if words else tuple(float(threshold) for threshold in self.thresholds)
        except (TypeError, ValueError, OverflowError):
            thresholds = ()
        check_thresholds(thresholds, self.thresholds)
        if isinstance(self.grid, bool) or not isinstance(self.grid, (int, np.integer)) or self.grid < 2:
            raise ValueError(
                f"grid: expected a whole number of anchors per axis, at least 2, found {shown(self.grid)}; "
                "give for example 16"
            )
        if not isinstance(self.solver, str) or not self.solver:
            raise ValueError(f"solver: expected a solver's name, found {shown(self.solver)}; give for example 'merge'")
        for name, most in (("tau", MOST_TAU), ("alpha", MOST_ALPHA)):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), most)
        object.__setattr__(self, "thresholds", thresholds)
        object.__setattr__(self, "grid", int(self.grid))
        object.__setattr__(self, "weights", as_weights(self.weights))


def check_number(name: str, value: Any, most: float = np.inf) -> None:
    """Raise ValueError unless a value is a finite number above 0, and at most `most`."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 < value <= most or value == np.inf:
        limit = "" if most == np.inf else f" and at most {most:g}"
        example = 0.5 if most <= MOST_TAU else 10
        raise ValueError(
            f"{name}: expected a finite number above 0{limit}, found {shown(value)}; give for example {example}"
        )


def as_config(config: MergeConfig | None) -> MergeConfig:
    """The config itself; None: the defaults. Raises ValueError for anything else."""
    if not isinstance(config, MergeConfig | None):
        raise ValueError(f"config: expected a MergeConfig or None, found {shown(config)}")
    return config or MergeConfig()


def check_thresholds(thresholds: tuple[float, ...], found: object) -> None:
    """Raise ValueError unless these are what a merge can take. `found`: what they were read from."""
    if not thresholds or not all(LEAST <= threshold <= 1 / LEAST for threshold in thresholds):
        raise ValueError(
            f"thresholds: expected one finite number above 0 ({LEAST} to {1 / LEAST:.0e}) per iteration and at least "
            f"one, found {shown(found)}; give for example (1.1, 1.1, 1.1)"
        )
    if len(thresholds) > MOST_ITERATIONS:
        raise ValueError(f"thresholds: expected at most {MOST_ITERATIONS}, found {len(thresholds)}; give fewer")


def every_iteration(thresholds: Any, iterations: int | None, default: tuple[float, ...]) -> tuple[float, ...]:
    """A threshold for every iteration, from what was asked for. Raises DiffSegError where that is none."""
    whole = isinstance(iterations, int) and not isinstance(iterations, bool)
    if iterations is not None and (not whole or not 1 <= iterations <= MOST_ITERATIONS):
        raise DiffSegError(f"iterations: expected 1 to {MOST_ITERATIONS}, found {iterations!r}")
    if thresholds is None:
        # More iterations than exported thresholds: the last one goes on.
        return default if iterations is None else (default + default[-1:] * iterations)[:iterations]
    if isinstance(thresholds, Real) and not isinstance(thresholds, bool):
        return (float(thresholds),) * (iterations or len(default))
    if isinstance(thresholds, (str, bytes, bool)) or not isinstance(thresholds, Iterable):
        raise DiffSegError(f"thresholds: expected a number, one per iteration, or 'auto', found {shown(thresholds)}")
    found = tuple(thresholds)
    if iterations not in (None, len(found)):
        raise DiffSegError(f"thresholds: expected one, or one for each of {iterations} iterations, found {len(found)}")
    return found

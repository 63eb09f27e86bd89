"""How the resolutions of a pyramid are weighted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from runtime.errors import shown

Shape: TypeAlias = tuple[int, int]


Weighting: TypeAlias = Literal["proportional", "per-tensor"] | tuple[float, ...]


def as_weights(weights: Any) -> Weighting:
    """The weights, a list as a tuple. Raises ValueError where they fit no pyramid."""
    if isinstance(weights, str):
        if weights not in ("proportional", "per-tensor"):
            raise ValueError(
                "weights: expected 'proportional', 'per-tensor' or one number per resolution, found "
                f"{shown(weights)}; choose one of them"
            )
        return weights  # type: ignore[return-value]
    try:
        values = () if isinstance(weights, bytes) else tuple(float(value) for value in weights)
    except (TypeError, ValueError, OverflowError):
        values = ()
    if not values or not all(np.isfinite(value) and value >= 0 for value in values) or max(values) <= 0:
        raise ValueError(
            "weights: expected finite numbers that are not negative and not all 0, one per resolution, "
            f"found {shown(weights)}; give for example (1, 0, 0, 0) for the finest resolution alone"
        )
    return values


def resolution_ratios(weights: Any, shapes: Sequence[Shape], layers: Sequence[int] | None = None) -> list[float]:
    """R_r of every resolution, summing to 1 (paper, equation 4).

    Args:
        weights: "proportional" (R_r ∝ side), "per-tensor" (R_r ∝ layers · side) or one number per resolution.
        shapes: (h, w) of every resolution; the side of a grid that is not square is √(h·w).
        layers: how many layers were averaged in every resolution; needed for "per-tensor".

    Raises:
        ValueError: if weights or layers do not fit the resolutions.
    """
    chosen = as_weights(weights)
    sides = [float(np.sqrt(h * w)) for h, w in shapes]
    if chosen == "proportional":
        values = sides
    elif chosen == "per-tensor":
        counts = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, (str, bytes)) else []
        if len(counts) != len(shapes) or not all(isinstance(n, (int, np.integer)) and n >= 1 for n in counts):
            raise ValueError(
                f"layers: weights 'per-tensor' expect {len(shapes)} numbers of layers, each at least 1, found "
                f"{shown(layers)}; pass layers= as the engine's sidecar gives them, or use weights 'proportional'"
            )
        values = [count * side for count, side in zip(counts, sides, strict=True)]
    else:
        if len(chosen) != len(shapes):
            raise ValueError(
                f"weights: expected {len(shapes)} numbers, one per resolution {_sizes(shapes)}, found "
                f"{len(chosen)}; give as many weights as there are resolutions (0 leaves one out)"
            )
        values = [float(value) for value in chosen]
    total = sum(values)
    if not np.isfinite(total):
        values = [value / max(values) for value in values]
        total = sum(values)
    return [value / total for value in values]


def _sizes(shapes: Sequence[Shape]) -> str:
    return ", ".join(f"{h}x{w}" for h, w in shapes)

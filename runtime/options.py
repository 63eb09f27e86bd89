"""How a frame is segmented: an engine's defaults, and options in their place."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError
from runtime.merge.registry import DEFAULT
from runtime.pyramid.config import MergeConfig, every_iteration
from runtime.pyramid.weights import as_weights
from runtime.refine.refinement import Refinement, split_refine
from runtime.refine.registry import DEFAULT_PIECES

if TYPE_CHECKING:
    from runtime.engine.spec import EngineSpec


def default_config(spec: EngineSpec) -> MergeConfig:
    """What an engine was exported with, and fewer anchors where its finest attention is smaller than that."""
    finest = spec.levels[0]
    try:
        grid = min(spec.grid, finest.height, finest.width)
        return MergeConfig(spec.thresholds, grid, as_weights(spec.weights), spec.solver)
    except ValueError as error:
        raise DiffSegError(f"the engine's own defaults cannot be used: {error}; export it again") from None


def thresholds_of(text: str | None) -> Any:
    """The option `thresholds` of `Segmenter.open` from a text: "0.6", "0.6,0.5,0.4" or "auto"; None stays None.

    Raises DiffSegError where it is another text.
    """
    if text == "auto":
        return text
    try:
        return read_numbers(text, "--threshold")
    except DiffSegError:
        expected = "a number above 0, one for each iteration with commas, or auto"
        raise DiffSegError(f"threshold: expected {expected}, found {str(text)[:80]!r}") from None


def label_type(config: MergeConfig, refinement: Refinement) -> str:
    """The type of a tensor of labels made in this way: UINT8, or INT32 where there may be more than 256."""
    most = config.grid**2 if config.solver == DEFAULT else math.inf
    return "UINT8" if max(most, refinement.most_pieces) <= 256 else "INT32"


def settle_options(
    default: MergeConfig,
    *,
    thresholds: Any = None,
    iterations: int | None = None,
    grid: int | None = None,
    weights: Any = None,
    solver: str | None = None,
    tau: float | None = None,
    alpha: float | None = None,
    refine: str = "none",
    min_area: float = 0,
    pieces: str = DEFAULT_PIECES,
    auto: bool = False,
) -> tuple[MergeConfig, Refinement, bool]:
    """Options of `Segmenter.open` as parameters of the merge, a refinement, and whether segments are chosen by "auto".

    `auto`: they are where nothing else is asked for, neither thresholds nor iterations nor a solver other than the
    merge. Raises DiffSegError where one is invalid.
    """
    asked = isinstance(thresholds, str) and thresholds == "auto"
    try:
        solver, names = split_refine(refine, solver, default.solver)
        config = replace(
            default,
            thresholds=every_iteration(None if asked else thresholds, iterations, default.thresholds),
            grid=default.grid if grid is None else grid,
            weights=default.weights if weights is None else as_weights(weights),
            solver=solver,
            tau=tau,
            alpha=alpha,
        )
        chosen = asked or (auto and thresholds is None and iterations is None and solver == DEFAULT)
        return config, Refinement(names, min_area, pieces), chosen
    except (TypeError, ValueError) as error:
        raise DiffSegError(str(error)) from None


def read_numbers(text: str | None, option: str, other: str = "") -> float | tuple[float, ...] | None:
    """`1.1,0.9` → numbers, and one threshold → a number. Raises DiffSegError for anything else.

    `option`, `other`: its name in the error, and what else may be in its place.
    """
    if text is None:
        return None
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise DiffSegError(f"{option}: expected numbers with commas between them{other}, found {text!r}") from None
    return numbers[0] if len(numbers) == 1 and option == "--threshold" else numbers

"""Settings of a method: as they are typed, and with every default filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.engine.base import no_maps
from runtime.engine.heads import HEADS
from runtime.errors import DiffSegError
from runtime.merge.registry import DEFAULT, solver_of
from runtime.pyramid.config import MergeConfig
from runtime.pyramid.weights import Weighting, as_weights, resolution_ratios
from runtime.refine.refinement import Refinement, split_refine
from runtime.refine.registry import DEFAULT_PIECES
from tools.evaluate.divergence import KL_PER_JS

if TYPE_CHECKING:
    from runtime.engine.spec import EngineSpec
    from tools.evaluate.masks import Protocol


@dataclass(frozen=True, slots=True)
class Variant:
    """One method in one setting: a row of the table. None: the setting does not apply, or is not used.

    `thresholds` (one per iteration), `grid` and `similarity` ("kl" or "js") belong to DiffSeg's merge; with `auto` the
    segments are chosen for every image. `weights` belong to the aggregation, which K-means uses, too. `refine`,
    `min_area` and `pieces` are the runtime's refinements; of these the paper has only "kmeans". `solver`, `tau` and
    `alpha` are in place of the merge, and belong to it alone. With `flip` the network also sees the mirror image.
    """

    method: str
    engine: str | None = None
    weights: str | None = None
    thresholds: tuple[float, ...] | None = None
    auto: bool | None = None
    grid: int | None = None
    similarity: str | None = None
    refine: str | None = None
    min_area: float | None = None
    solver: str | None = None
    tau: float | None = None
    alpha: float | None = None
    pieces: str | None = None
    flip: bool | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """Settings as they are typed; None: the engine's own, the paper's, or what `diffseg segment` does."""

    weights: str | None = None
    threshold: str | None = None
    iterations: int | None = None
    grid: int | None = None
    similarity: str = "kl"
    refine: str | None = None
    min_area: float | None = None
    solver: str | None = None
    tau: float | None = None
    alpha: float | None = None
    pieces: str | None = None
    flip: bool | None = None


def settle(method: str, engine: str, spec: EngineSpec, protocol: Protocol, wish: Wish) -> Variant:
    """A variant with every default filled in from the engine and the protocol of the data set.

    Raises DiffSegError when a setting does not suit the engine, or contradicts another one.
    """
    own = spec.weights if isinstance(spec.weights, str) else ",".join(f"{value:g}" for value in spec.weights)
    chosen = wish.weights or own
    weights = parse_weights(chosen, spec)
    try:
        solver = split_refine(wish.refine or "none", wish.solver, spec.solver)[0]
    except ValueError as error:
        raise DiffSegError(str(error)) from None
    if wish.flip and HEADS[spec.head].route != "maps":
        raise DiffSegError(f"--flip: {no_maps(spec)}")
    if HEADS[spec.head].route == "labels":
        _check_labels_head(method, engine, spec, wish, own, solver)
    elif HEADS[spec.head].route == "features":
        _check_features_head(method, engine, wish, solver)
    if method != "diffseg":
        return Variant(method, engine, chosen)
    plain = wish.threshold is None and wish.iterations is None and wish.similarity == "kl" and solver == DEFAULT
    auto = wish.threshold == "auto" or (spec.auto and plain)
    # The protocols of papers compare what a merge gives; they alone have a crop.
    pieces = wish.pieces or ("keep" if protocol.crop else DEFAULT_PIECES)
    refine = None if wish.refine in (None, "none") else wish.refine
    if wish.similarity == "js" and (auto or solver != DEFAULT):
        raise DiffSegError(
            f"--similarity js: expected no --threshold auto and the solver {DEFAULT}, found "
            f"{'auto' if auto else solver}; leave it out"
        )
    if auto and solver != DEFAULT:
        raise DiffSegError(f"--threshold auto: expected the solver {DEFAULT}, found {solver}; leave one out")
    given = None if wish.threshold is None or auto else _numbers(wish.threshold)
    thresholds = given or _default_thresholds(spec, protocol, wish.similarity)
    if wish.iterations is not None:
        if given is not None and len(given) not in (1, wish.iterations):
            raise DiffSegError(
                f"expected one threshold, or one for each of {wish.iterations} iterations, found {len(given)}"
            )
        thresholds = (thresholds + thresholds[-1:] * wish.iterations)[: wish.iterations]
    elif len(thresholds) == 1:
        thresholds = thresholds * len(spec.thresholds)
    finest = spec.levels[0]
    most = min(finest.height, finest.width)
    if wish.grid is not None and not 2 <= wish.grid <= most:
        raise DiffSegError(f"--grid {wish.grid}: expected 2 to {most}, the shorter side of the finest attention")
    try:
        grid = min(spec.grid, most) if wish.grid is None else wish.grid
        config = MergeConfig(thresholds, grid, weights, solver, wish.tau, wish.alpha)
        solver_of(config)
        Refinement(min_area=wish.min_area or 0, pieces=pieces)
    except ValueError as error:
        raise DiffSegError(str(error)) from None
    return Variant(
        method,
        engine,
        chosen,
        config.thresholds,
        auto or None,
        config.grid,
        wish.similarity,
        refine,
        wish.min_area or None,
        None if solver == DEFAULT else solver,
        wish.tau,
        wish.alpha,
        None if pieces == "keep" else pieces,
        wish.flip,
    )


def parse_weights(text: str, spec: EngineSpec) -> Weighting:
    """Weights of the aggregation from their text: proportional, per-tensor, 64-only, or numbers with commas.

    Raises DiffSegError when the engine does not have that resolution, or has another number of them.
    """
    sides = [max(level.height, level.width) for level in spec.levels]
    try:
        if text.endswith("-only"):
            side = int(text.removesuffix("-only"))
            if side not in sides:
                raise ValueError(f"expected one of {', '.join(f'{side}-only' for side in sides)}")
            return tuple(float(one == side) for one in sides)
        named = text in ("proportional", "per-tensor")
        weights = as_weights(text if named else tuple(float(part) for part in text.split(",")))
        resolution_ratios(weights, [(level.height, level.width) for level in spec.levels], [1] * len(sides))
    except ValueError as error:
        raise DiffSegError(
            f"--weights {text}: {error}; expected proportional, per-tensor, {sides[0]}-only or one number per "
            f"resolution ({', '.join(map(str, sides))})"
        ) from None
    return weights


def _count(threshold: str | None) -> int | None:
    """The number of iterations that a list of thresholds implies; None for a single threshold."""
    return threshold.count(",") + 1 if threshold and "," in threshold else None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise DiffSegError(f"--threshold {text}: expected auto, or numbers such as 0.9 or 1.1,0.9,0.9") from None


def _default_thresholds(spec: EngineSpec, protocol: Protocol, similarity: str) -> tuple[float, ...]:
    """The engine's thresholds or those of the protocol, converted for the similarity."""
    thresholds = spec.thresholds
    if protocol.replace_threshold is not None:
        usual, other = protocol.replace_threshold
        thresholds = tuple(other if value == usual else value for value in thresholds)
    if similarity == "js":
        thresholds = tuple(value / KL_PER_JS for value in thresholds)
    return thresholds


def _check_features_head(method: str, engine: str, wish: Wish, solver: str) -> None:
    """Raise DiffSegError when a setting needs maps, which an engine with the head features does not give."""
    asked = {f"--{name}": getattr(wish, name) for name in ("weights", "threshold", "iterations", "grid")}
    other = [option for option, value in asked.items() if value is not None]
    other += ["--similarity js"] * (wish.similarity == "js") + [f"the solver {solver}"] * (solver != "ncut")
    if method != "diffseg" or other:
        raise DiffSegError(
            f"{engine}: found the head features, which gives no maps; expected the head attention for "
            f"{' and '.join(other) or method}; export it with --head attention"
        )


def _check_labels_head(method: str, engine: str, spec: EngineSpec, wish: Wish, own_weights: str, solver: str) -> None:
    """Raise DiffSegError when a setting is not in the graph of an engine with the head labels."""
    baked = {
        "weights": (wish.weights, own_weights),
        "iterations": (wish.iterations or _count(wish.threshold), len(spec.thresholds)),
        "grid": (wish.grid, spec.grid),
        "similarity": (wish.similarity, "kl"),
    }
    other = [name for name, (wished, own) in baked.items() if wished not in (None, own)]
    if wish.threshold == "auto" or solver != spec.solver or wish.alpha is not None:
        other.append(f"--threshold auto, --alpha or a solver other than {spec.solver}")
    if method != "diffseg" or other:
        raise DiffSegError(
            f"{engine}: found the head labels, with the merge in the graph; expected the head attention for "
            f"{' and '.join(other) or method}; export it with --head attention"
        )

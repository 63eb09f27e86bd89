"""What every route is: the network's pass over some frames, and the merge of one frame's output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runtime.engine.base import no_maps
from runtime.errors import DiffSegError, EngineFault
from runtime.merge.registry import DEFAULT, solver_of
from runtime.pyramid.weights import resolution_ratios
from runtime.words import combine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.engine.base import Engine
    from runtime.pyramid.config import MergeConfig
    from runtime.result import Merged


class Route(ABC):
    """One way from an engine's output to labels. Chosen once, by `runtime.routes.registry.open_route`.

    Attributes:
        engine: the open engine.
        config: thresholds, anchors and weights of the merge.
        auto: segments are chosen for every frame from a hierarchy (`runtime.merge.parts`).
        tokens: (h, w) of every resolution, finest first.
        layers: how many layers were averaged in every resolution.
        overlaps: `merge` may work in one thread while `network` works on other frames in another.
        has_maps: there are maps to make proposals, heat maps, hierarchies and warm starts from.
        turns: a frame and its mirror image are merged the same way round, which follows from the maps. So both have the
            same segments, where the engine flips; a clip's frames might be turned now and then.
    """

    overlaps = True
    has_maps = True

    def __init__(self, engine: Engine, config: MergeConfig, auto: bool = False) -> None:
        """Raises DiffSegError when the solver is unknown or not for "auto", or the rest does not fit the engine."""
        self.engine, self.config, self.auto, self.turns = engine, config, auto, engine.flips
        if auto and config.solver != DEFAULT:
            raise DiffSegError(
                f"thresholds 'auto': expected the solver {DEFAULT}, found {config.solver}; leave out one of the two"
            )
        levels = engine.spec.levels
        self.tokens = [(level.height, level.width) for level in levels]
        self.layers = [level.layers for level in levels]
        try:
            solver_of(config)
            resolution_ratios(config.weights, self.tokens, self.layers)
        except ValueError as error:
            raise DiffSegError(str(error)) from None
        height, width = self.tokens[0]
        side = min(height, width)
        if config.grid > side:
            raise DiffSegError(
                f"grid: expected a grid from 2 to {side}, since this engine's finest attention is {height}x{width}, "
                f"found {config.grid}; choose a smaller one"
            )

    @abstractmethod
    def network(self, frames: NDArray[np.uint8]) -> list[Any]:
        """Run resized frames uint8 [B, H, W, 3] BGR through the network: one output for each, which `merge` takes."""

    @abstractmethod
    def merge(
        self,
        output: Any,
        *,
        config: MergeConfig | None = None,
        proposals: bool = False,
        details: bool = False,
        seeds: NDArray[np.float32] | None = None,
    ) -> Merged:
        """Turn one frame's output into labels at the engine's size.

        Args:
            output: of `network`.
            config: in place of the route's own, for this call; thresholds are then taken as they are.
            proposals: give the proposals, too.
            details: give the proposals and the aggregated attention, too.
            seeds: float32 [S, h, w], the proposals of the frame before, for a warm start: they are the first anchors,
                and the grid is half as fine per axis. Where this saves nothing, they are left aside.
        """

    def fault(self, text: str) -> EngineFault:
        """The error for an output that is no segmentation. `text`: what was expected and what was found."""
        name = getattr(self.engine, "path", None) or type(self.engine).__name__
        return EngineFault(f"the engine {name} gives {text}; export it again, or choose another --precision")

    def word_maps(self, levels: Sequence[NDArray[Any]]) -> NDArray[np.float32] | None:
        """One map per word, float32 [words, h, w], of a frame's words' maps per resolution; None without words.

        The weights of the resolutions are those of the merge. Raises EngineFault where a map is invalid.
        """
        if not levels:
            return None
        try:
            return combine(levels, resolution_ratios(self.config.weights, self.tokens, self.layers))
        except ValueError as error:
            raise self.fault(f"maps of words that are no probabilities: {error}") from None

    def check_maps(self, what: str) -> None:
        """Raise DiffSegError where `what` is made from maps and this route has none."""
        if not self.has_maps:
            raise DiffSegError(f"{what}: {no_maps(self.engine.spec)}")

    def clone(self) -> Route:
        """The same route on a clone of the engine, for another thread."""
        other = type(self)(self.engine.clone(), self.config, self.auto)
        other.turns = self.turns
        return other

"""The features come to the host and are cut there: recursive normalised cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError
from runtime.merge.solvers.ncut import ALPHA, TAU, normalized_cut
from runtime.result import Merged
from runtime.routes.base import Route

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.engine.base import Engine
    from runtime.pyramid.config import MergeConfig

SOLVER = "ncut"  # the only one that cuts features


class FeaturesRoute(Route):
    """An output is the features of one frame: float [h·w, C]."""

    has_maps = False

    def __init__(self, engine: Engine, config: MergeConfig, auto: bool = False) -> None:
        """Raises DiffSegError where the config asks for what needs maps."""
        if auto:
            self.engine = engine
            self.check_maps("thresholds 'auto'")
        super().__init__(engine, config, auto)
        self._check(config)

    def network(self, frames: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """See `Route.network`."""
        return list(self.engine.infer(frames)[0])

    def merge(
        self,
        output: NDArray[Any],
        *,
        config: MergeConfig | None = None,
        proposals: bool = False,
        details: bool = False,
        seeds: NDArray[np.float32] | None = None,
    ) -> Merged:
        """See `Route.merge`. There are no proposals.

        Raises DiffSegError where details are asked for, or a feature is a NaN or an infinity.
        """
        if details:
            self.check_maps("details")
        chosen = self.config if config is None else config
        spec = self.engine.spec
        try:
            raw = normalized_cut(
                output,
                self.tokens[0],
                tau=chosen.tau or TAU,
                alpha=chosen.alpha or ALPHA,
                size=(spec.height, spec.width),
            )
        except ValueError as error:
            raise DiffSegError(str(error)) from None
        return Merged(raw, None, None)

    def _check(self, config: MergeConfig) -> None:
        spec = self.engine.spec
        if config.solver != SOLVER:
            raise DiffSegError(
                f"solver: expected {SOLVER}, which cuts this engine's features, found {config.solver}; leave it out"
            )
        own = {"thresholds": spec.thresholds, "weights": spec.weights}
        for name, expected in own.items():
            if getattr(config, name) != expected:
                self.check_maps(name)
        if config.grid != min(spec.grid, *self.tokens[0]):
            self.check_maps("grid")

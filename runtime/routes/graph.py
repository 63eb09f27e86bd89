"""The engine's graph is the whole of DiffSeg: it gives labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.engine.base import rebuild_command
from runtime.errors import DiffSegError
from runtime.result import Merged
from runtime.routes.base import Route

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.engine.base import Engine
    from runtime.pyramid.config import MergeConfig


class GraphRoute(Route):
    """An output is the raw labels of one frame, [H, W] at the engine's size; the words' maps follow."""

    has_maps = False

    def __init__(self, engine: Engine, config: MergeConfig, auto: bool = False) -> None:
        """Raises DiffSegError where the config asks for what the graph is not."""
        super().__init__(engine, config, auto)
        self._check_graph()
        if auto:
            self.check_maps("thresholds 'auto'")

    def network(self, frames: NDArray[np.uint8]) -> list[list[NDArray[Any]]]:
        """See `Route.network`. Raises EngineFault where a label is of no segment."""
        labels, segments, *words = self.engine.infer(frames, self.config.thresholds)
        for found, count in zip(labels, segments, strict=True):
            if not 0 <= int(found.min()) <= int(found.max()) < int(count):
                raise self.fault(f"labels from {found.min()} to {found.max()}, expected 0 to {int(count) - 1}")
        return [[part[frame] for part in (labels, *words)] for frame in range(len(frames))]

    def merge(
        self,
        output: list[NDArray[Any]],
        *,
        config: MergeConfig | None = None,
        proposals: bool = False,
        details: bool = False,
        seeds: NDArray[np.float32] | None = None,
    ) -> Merged:
        """See `Route.merge`: the graph has merged already, so all that is left is the type of the labels.

        Raises DiffSegError where details are asked for, or another config.
        """
        if details or config is not None:
            self.check_maps("details" if details else "another config")
        return Merged(output[0].astype(np.int32, copy=False), None, None, self.word_maps(output[1:]))

    def _check_graph(self) -> None:
        spec, config = self.engine.spec, self.config
        baked = {
            "grid": (spec.grid, config.grid, f"--grid {config.grid}"),
            "weights": (spec.weights, config.weights, f"--weights {_text(config.weights)}"),
            "iterations": (len(spec.thresholds), len(config.thresholds), f"--threshold {_text(config.thresholds)}"),
        }
        for name, (expected, found, option) in baked.items():
            if expected != found:
                raise DiffSegError(
                    f"{name}: expected {_text(expected)}, which is part of this engine's graph, found {_text(found)}; "
                    f"{rebuild_command(spec, option)} changes it, and the head attention leaves it open"
                )
        if config.solver != spec.solver:
            raise DiffSegError(
                f"solver: expected {spec.solver}, which is in this engine's graph, found {config.solver}; "
                f"'python -m export {spec.source} --head attention --output engines/NAME' makes one that can"
            )
        if config.alpha is not None:
            raise DiffSegError(
                f"alpha: expected none, since it is part of this engine's graph, found {config.alpha:g}; leave it out"
            )


def _text(value: Any) -> str:
    return ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)

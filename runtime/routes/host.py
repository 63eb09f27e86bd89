"""The maps come to the host and are merged there, with NumPy and OpenCV."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import DiffSegError
from runtime.merge.aggregate import aggregate_attention
from runtime.merge.parts import find_parts
from runtime.merge.proposals import find
from runtime.merge.suppress import suppress
from runtime.pyramid.mirror import looks_right, mirror_keys, mirror_output
from runtime.result import Merged
from runtime.routes.base import Route

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.pyramid.config import MergeConfig


CHECKED_ROWS = 64  # of each map: what rows sum to is read from these alone
ROUNDING = 0.05  # by which a sum of 4096 probabilities of half precision may differ from 1


class HostRoute(Route):
    """An output is the attention pyramid of one frame: float [n, n] per resolution; the words' maps follow."""

    def network(self, frames: NDArray[np.uint8]) -> list[list[NDArray[Any]]]:
        """See `Route.network`."""
        pyramid = self.engine.infer(frames)
        return [[level[frame] for level in pyramid] for frame in range(len(frames))]

    def merge(
        self,
        output: list[NDArray[Any]],
        *,
        config: MergeConfig | None = None,
        proposals: bool = False,
        details: bool = False,
        seeds: NDArray[np.float32] | None = None,
    ) -> Merged:
        """See `Route.merge`. Proposals come at no cost, and always.

        Raises EngineFault where the maps are not probabilities.
        """
        maps, words = output[: len(self.tokens)], self.word_maps(output[len(self.tokens) :])
        self._check_sums(maps)
        turned = self.turns and looks_right(maps[0], self.tokens[0])
        if turned:
            maps = mirror_output(maps, self.tokens)
            seeds = None if seeds is None else mirror_keys(seeds.reshape(len(seeds), -1), self.tokens[0])
        try:
            merged = self._merge(maps, config or self.config, config is None and self.auto, details, seeds)
        except ValueError as error:
            if str(error).startswith("pyramid["):  # as for a map with a NaN
                raise self.fault(f"maps that are no probabilities: {error}") from None
            raise DiffSegError(str(error)) from None
        if turned:
            merged = self._turned_back(merged)
        return merged._replace(words=words)

    def _turned_back(self, merged: Merged) -> Merged:
        proposals, attention = merged.proposals, merged.attention
        return Merged(
            np.ascontiguousarray(merged.raw[:, ::-1]),
            None if proposals is None else mirror_keys(proposals, self.tokens[0]),
            None if attention is None else mirror_output([attention], self.tokens)[0],
            alike=None if merged.alike is None else merged.alike[:, ::-1],
        )

    def _check_sums(self, output: list[NDArray[Any]]) -> None:
        """Raise EngineFault where rows do not sum to 1. Some rows are enough: the graph makes all in one way."""
        for (height, width), level in zip(self.tokens, output, strict=True):
            sums = level[:: max(1, len(level) // CHECKED_ROWS)].sum(axis=-1, dtype=np.float32)
            if not (abs(sums - 1) <= ROUNDING).all():
                worst = sums[np.argmax(np.where(np.isfinite(sums), abs(sums - 1), np.inf))]
                raise self.fault(
                    f"maps that are no probabilities: attention_{height}x{width}, expected rows that sum to 1, found "
                    f"{worst:.4g}"
                )

    def _merge(
        self,
        output: list[NDArray[Any]],
        config: MergeConfig,
        auto: bool,
        details: bool,
        seeds: NDArray[np.float32] | None,
    ) -> Merged:
        shapes: dict[str, Any] = {"grids": self.tokens, "layers": self.layers}
        attention = aggregate_attention(output, weights=config.weights, **shapes) if details else None
        if auto:
            found = find_parts(output, config, **shapes)
        elif attention is not None:
            found = find([attention], replace(config, weights="proportional"), grids=self.tokens[:1])
        elif seeds is not None:
            coarse = replace(config, grid=max(2, config.grid // 2))
            found = find(output, coarse, **shapes, seeds=seeds.reshape(len(seeds), -1))
        else:  # the same proposals, without the aggregated attention as a whole
            found = find(output, config, **shapes)
        spec = self.engine.spec
        raw = suppress(found.scores, self.tokens[0], (spec.height, spec.width))
        return Merged(raw, found.proposals, attention, alike=found.alike)

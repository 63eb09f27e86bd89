"""The aggregated attention of one frame on a GPU, where it stays: only sums of it come to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.native.calls import prepare

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.pyramid.config import MergeConfig


class DeviceMaps:
    """One frame's maps, aggregated once. Used until this thread calls the merge core for another frame.

    Args:
        pyramid, config, options: of the frame, as `runtime.native.run` takes them; its thresholds are not used.
        cells: into how many blocks of pixels maps are summed, down and across.

    Raises:
        As `runtime.native.segment`; so do the methods.
    """

    def __init__(self, pyramid: Sequence[Any], config: MergeConfig, cells: tuple[int, int], *options: Any) -> None:
        self._call, self._cells = prepare(pyramid, config, *options), cells
        self._sums: NDArray[np.float32] | None = None

    def merged(self, thresholds: Sequence[float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Sums in blocks, of the maps [n, blocks] and of the proposals of a merge [P, blocks]; each adds up to 1."""
        core, maps, _, stream = self._call
        again = self._sums is not None
        # Labels of one pixel: nobody reads them.
        found = core(
            None if again else maps, 1, (1, 1), blocks=self._cells, thresholds=thresholds, stream=stream
        ).first()
        if not again:
            self._sums = found.attention_blocks
        assert self._sums is not None and found.proposal_blocks is not None
        return self._sums, found.proposal_blocks[: int(found.segments[0])]

    def means(self, part: NDArray[np.intp], count: int) -> NDArray[np.float32]:
        """The mean map [count, n] of each part of int [n], 0 … count−1; each sums to n."""
        core = self._call.core
        return core.part_means(part[None], count, self._call.stream)[0] * np.float32(core.n)

    def whole(self) -> NDArray[np.float32]:
        """All maps, [n, n]; each sums to 1. Called after `merged`."""
        attention = self._call.core(None, 1, (1, 1), details=True, stream=self._call.stream).attention
        assert attention is not None
        return attention[0]

"""DiffSeg on a CPU: from attention maps to labels, with NumPy and OpenCV.

Paper: "Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), sections 3.2 to 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.merge.aggregate import Aggregation
from runtime.merge.proposals import solve
from runtime.merge.suppress import suppress
from runtime.merge.threads import one_thread
from runtime.pyramid.anchors import anchor_queries
from runtime.pyramid.checks import as_size, check_pyramid
from runtime.pyramid.config import MergeConfig, as_config
from runtime.pyramid.weights import resolution_ratios

if TYPE_CHECKING:
    from numpy.typing import NDArray


@one_thread()
def segment_attention(
    pyramid: Sequence[Any],
    config: MergeConfig | None = None,
    *,
    size: tuple[int, int],
    grids: Sequence[Sequence[int]] | None = None,
    layers: Sequence[int] | None = None,
    device: str = "cpu",
) -> NDArray[np.int32]:
    """DiffSeg from attention maps to labels (paper, sections 3.2 to 3.4).

    Args:
        pyramid: float arrays [n, n] or [B, n, n], one per resolution, finest first, as for
            `aggregate_attention`.
        config: parameters of the merge; None = the defaults.
        size: (H, W) of the labels.
        grids: (h, w) of every resolution. Default: square.
        layers: number of layers averaged in every resolution; only weights "per-tensor" need it.
        device: "cpu", or "cuda" or "cuda:N" for the native core (`runtime.native`), which also takes arrays on
            the GPU.

    Returns:
        int32 [H, W] or [B, H, W]: index of the proposal of every pixel. Gaps are possible: see `renumber`.

    Raises:
        ValueError: if an argument is wrong or the maps are not probabilities; the text says what to do.
        DiffSegError: if a GPU is asked for and not found, or the native core cannot be built.
    """
    config = as_config(config)
    if device != "cpu":
        from runtime import native

        return native.segment(pyramid, config, size, grids, layers, device)
    maps, shapes = check_pyramid(pyramid, grids)
    ratios = resolution_ratios(config.weights, shapes, layers)
    anchor_queries(shapes[0], config.grid)
    height, width = as_size(size)
    n = maps[0].shape[-1]
    frames = [maps] if maps[0].ndim == 2 else [[level[b] for level in maps] for b in range(len(maps[0]))]
    labels = np.empty((len(frames), height, width), np.int32)
    for frame, target in zip(frames, labels, strict=True):
        # One frame at a time: a batch needs no more memory than a frame.
        found = solve(Aggregation(frame, shapes, ratios, total=n), config)
        target[...] = suppress(found.scores, shapes[0], (height, width))
    return labels[0] if maps[0].ndim == 2 else labels

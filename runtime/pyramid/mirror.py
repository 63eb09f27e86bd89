"""Attention maps of a frame's mirror image, left and right exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.pyramid.weights import Shape


def mirror_output(output: Sequence[NDArray[Any]], shapes: Sequence[Shape]) -> list[NDArray[Any]]:
    """A pyramid mirrored, as copies: maps [..., n, n], one per resolution, with their queries and their keys.

    `shapes`: (h, w) of every resolution with h·w = n. What follows the maps are words' maps [..., h, w].
    """
    maps = []
    for level, (h, w) in zip(output, shapes, strict=False):
        grid = level.reshape(*level.shape[:-2], h, w, h, w)
        maps.append(np.ascontiguousarray(grid[..., ::-1, :, ::-1]).reshape(level.shape))
    return maps + [np.ascontiguousarray(words[..., ::-1]) for words in output[len(maps) :]]


def mirror_keys(maps: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Maps [..., n] of n = h·w pixels mirrored, for `shape` (h, w). A copy."""
    return np.ascontiguousarray(maps.reshape(*maps.shape[:-1], *shape)[..., ::-1]).reshape(maps.shape)


def looks_right(level: NDArray[Any], shape: Shape) -> bool:
    """Whether the right half of a frame gets more attention than the left one: for its mirror image the opposite.

    `level`: the maps [n, n] of n = h·w pixels, for `shape` (h, w). Columns count by their distance from the middle.
    Where both halves get the same, as of a symmetric frame, the answer is no.
    """
    columns = level.sum(axis=0, dtype=np.float64).reshape(shape).sum(axis=0)
    half = shape[1] // 2
    distance = np.arange(shape[1] - half, shape[1]) - (shape[1] - 1) / 2
    return bool(distance @ (columns[-half:] - columns[:half][::-1]) > 0)

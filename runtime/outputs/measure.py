"""Area, box and centroid of every segment of a label map, and its connected regions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from runtime.labels import count_pixels, pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Measures(NamedTuple):
    """Of S segments, in the order of their labels, in pixels.

    Attributes:
        labels: int64 [S], ascending.
        areas: int64 [S], number of pixels.
        boxes: int64 [S, 4], x, y, width, height of the smallest upright rectangle around each.
        centroids: float64 [S, 2], x, y; (0, 0) is the centre of the first pixel.
    """

    labels: NDArray[np.intp]
    areas: NDArray[np.intp]
    boxes: NDArray[np.intp]
    centroids: NDArray[np.float64]


def measure(labels: NDArray[np.int32]) -> Measures:
    """Measure the segments of labels int [H, W], not negative; the labels may have gaps."""
    height, width = labels.shape
    present = np.flatnonzero(count_pixels(labels))
    numbers = np.zeros(int(present[-1]) + 1, np.intp)
    numbers[present] = np.arange(len(present))
    # Pixels of each segment in every row, and in every column: all else follows from these.
    rows = np.empty((height, len(present)), np.intp)
    columns = np.zeros((width, len(present)), np.intp)
    for part in pieces(labels):
        packed = numbers[labels[part]]
        rows[part] = _counts(packed + np.arange(len(packed))[:, None] * len(present), (len(packed), len(present)))
        packed += np.arange(width) * len(present)
        columns += _counts(packed, columns.shape)
    areas = rows.sum(axis=0)
    (top, bottom, y), (left, right, x) = _extent(rows, areas), _extent(columns, areas)
    return Measures(present, areas, np.stack([left, top, right - left, bottom - top], axis=1), np.stack([x, y], axis=1))


def _counts(numbers: NDArray[np.intp], shape: tuple[int, int]) -> NDArray[np.intp]:
    return np.bincount(numbers.ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def _extent(
    counts: NDArray[np.intp], areas: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """First position along an axis, the one behind the last, and the mean, of each segment; counts [length, S]."""
    there = counts > 0
    return there.argmax(axis=0), len(counts) - there[::-1].argmax(axis=0), np.arange(len(counts)) @ counts / areas


def connected_regions(labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], list[int]]:
    """Number of every pixel's region, int32 [H, W] from 0, and the label of each region.

    Regions are numbered in the order of their labels; those of one label in the order of their first pixels.
    """
    regions = np.empty(labels.shape, np.int32)
    owner: list[int] = []
    measures = measure(labels)
    for label, (x, y, width, height) in zip(measures.labels.tolist(), measures.boxes.tolist(), strict=True):
        box = np.s_[y : y + height, x : x + width]
        mask = (labels[box] == label).astype(np.uint8)
        count, found = cv2.connectedComponents(mask, connectivity=4)
        np.copyto(regions[box], found + (len(owner) - 1), where=mask.view(bool))
        owner += [label] * (count - 1)
    return regions, owner

"""Pixel-adaptive mask refinement: masks are averaged over neighbours of similar colour, again and again.

Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DILATIONS = (1, 2, 4, 8, 12, 24)  # the paper's
ROUNDS = 10
LARGEST = 512 * 512  # pixels; a larger frame is refined at this size
SPREAD = 0.1  # of the deviation of the colours: the scale of differences
SMALLEST_SPREAD = 1e-8


def pamr(
    labels: NDArray[np.int32], frame: NDArray[np.uint8], dilations: Sequence[int] = DILATIONS
) -> NDArray[np.int32]:
    """Move borders to where colours change.

    Ten times each pixel of a segment's mask becomes the mean of its neighbours: the eight pixels around it at each
    dilation, with the softmax of −|difference of colour| / (0.1 · local deviation) as weights. The segment with the
    largest mask wins. Time grows with pixels × segments; a frame of more than 512 × 512 pixels is refined at that size.

    Args:
        labels: int32 [H, W], not negative.
        frame: uint8 [H, W, 3].
        dilations: distances of the neighbours in pixels.

    Returns:
        int32 [H, W]: the same labels; some may be gone.
    """
    scale = (LARGEST / labels.size) ** 0.5
    if scale < 1:
        size = [max(1, round(side * scale)) for side in reversed(labels.shape)]
        small: Any = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        seen = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
        wide = cv2.resize(pamr(small, seen, dilations), labels.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return np.asarray(wide, np.int32)
    numbers, index = np.unique(labels, return_inverse=True)
    if len(numbers) == 1:
        return labels
    offsets = [(y * d, x * d) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    weights = _weights(frame.astype(np.float32), offsets, len(dilations))
    masks = (index.reshape(labels.shape) == np.arange(len(numbers))[:, None, None]).astype(np.float32)
    reach = max(dilations)
    product = np.empty_like(masks[0])
    for _ in range(ROUNDS):
        for mask in masks:  # one at a time: it stays in the cache
            wide = _padded(mask, reach)
            mask.fill(0)
            for (y, x), weight in zip(offsets, weights, strict=True):
                mask += np.multiply(weight, _shifted(wide, y, x, reach, mask.shape), out=product)
    return numbers[masks.argmax(axis=0)].astype(np.int32)


def _weights(frame: NDArray[np.float32], offsets: Sequence[tuple[int, int]], centres: int) -> NDArray[np.float32]:
    """The weight of each neighbour of each pixel, float32 [offsets, H, W], summing to 1 over the neighbours.

    `centres`: how often the pixel itself counts in the deviation, once for each dilation.
    """
    reach = max(abs(y) for y, _ in offsets)
    wide = _padded(frame, reach)
    total, squares = frame * centres, frame * frame * centres
    differences = np.empty((len(offsets), *frame.shape[:2]), np.float32)
    for y, x in offsets:
        there = _shifted(wide, y, x, reach, frame.shape)
        total += there
        squares += there * there
    count = len(offsets) + centres
    variance = np.maximum(squares - total * total / count, 0) / (count - 1)
    scale = 1 / (SMALLEST_SPREAD + SPREAD * np.sqrt(variance)) / frame.shape[2]
    for (y, x), target in zip(offsets, differences, strict=True):
        distance = np.abs(_shifted(wide, y, x, reach, frame.shape) - frame)
        np.einsum("ijk,ijk->ij", distance, scale, out=target)
    differences -= differences.min(axis=0)
    np.exp(np.negative(differences, out=differences), out=differences)
    differences /= differences.sum(axis=0)
    return differences


def _padded(image: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    return np.asarray(cv2.copyMakeBorder(image, reach, reach, reach, reach, cv2.BORDER_REPLICATE), np.float32)


def _shifted(wide: NDArray[np.float32], y: int, x: int, reach: int, shape: Sequence[int]) -> NDArray[np.float32]:
    return wide[reach + y : reach + y + shape[0], reach + x : reach + x + shape[1]]

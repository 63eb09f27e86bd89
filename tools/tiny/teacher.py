"""Targets of the tiny model's attention: how often classical segmentations put two places into one segment.

A single segmentation by graph (Felzenszwalb and Huttenlocher, IJCV 2004), by mean shift (Comaniciu and Meer, PAMI
2002) or by mutual information (`tools.tiny.mutual_information`) is a poor target: its borders move with its parameters.
The agreement of three dozen of them, at several scales, is a better one: DiffSeg's own merge of that agreement segments
better than each of them. No person's label is used.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import cv2
import numpy as np

from tools.evaluate.classical import mean_shift
from tools.tiny import mutual_information

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCALES = (100, 200, 400, 800)
SIGMAS = (0.5, 1.2)  # pixels of smoothing beforehand
RADII = ((8, 16), (8, 24), (8, 32), (12, 16), (12, 24), (12, 32))  # of mean shift: pixels, levels of Lab
SMALLEST = 300  # pixels of a segment, of 256×256
CELL = 4  # pixels of a label: four labels to a token of 8×8 pixels
STATISTICS = ((0.05, 1.5), (0.035, 2.0))  # bandwidth and ρ of mutual information; each without and with texture
EMBEDDED_SCALES = (800, 1600, 3200)  # of graph segmentations of the embedded cells
MEMBERS = 2 * len(SCALES) * len(SIGMAS) + len(RADII) + 2 * len(STATISTICS) * len(EMBEDDED_SCALES)
POWER = 4  # the best of 2 to 5 on the photographs for development
FLOOR = 2e-5  # instead of 0 for places never together, so that all divergences are finite


def teach(picture: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Segmentations of `picture` uint8 [H, W, 3] BGR: uint16 [34, H/4, W/4].

    Those by graph are of the picture, of its mean-shift-filtered copy, and of the embeddings by mutual information.
    """
    from skimage.segmentation import felzenszwalb

    segmentations = [
        felzenszwalb(version, scale=scale, sigma=sigma, min_size=SMALLEST)
        for version in (picture, cv2.pyrMeanShiftFiltering(picture, 10, 20))
        for sigma in SIGMAS
        for scale in SCALES
    ]
    segmentations += [mean_shift(picture, space, colour, smallest=SMALLEST) for space, colour in RADII]
    cells = [labels[CELL // 2 :: CELL, CELL // 2 :: CELL] for labels in segmentations]
    for texture in (False, True):
        for bandwidth, rho in STATISTICS:
            embedded = mutual_information.embed(picture, cells[0].shape, bandwidth, rho, texture)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a picture of 16 channels is intended
                cells += [
                    felzenszwalb(embedded, scale=scale, sigma=0, min_size=round(SMALLEST / CELL**2), channel_axis=-1)
                    for scale in EMBEDDED_SCALES
                ]
    return np.stack(cells).astype(np.uint16)


def together(labels: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.float32]:
    """The share of segmentations that put two tokens together: float32 [n, n] from labels [K, 2·h, 2·w], n = h·w.

    A token has four labels. One of them is drawn at random per segmentation, for rows and for columns apart, so that a
    token on a border belongs to both sides in part.
    """
    members, height, width = labels.shape
    n = height * width // 4
    cells = labels.reshape(members, height // 2, 2, width // 2, 2).transpose(0, 1, 3, 2, 4).reshape(members, n, 4)
    rows, columns = (np.take_along_axis(cells, rng.integers(0, 4, (members, n, 1)), axis=2)[..., 0] for _ in range(2))
    count = np.zeros((n, n), np.uint8)
    for row, column in zip(rows, columns, strict=True):
        count += row[:, None] == column[None]
    return count.astype(np.float32) / members


def target(labels: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.float32]:
    """The target attention for `labels` [K, 2·h, 2·w]: float32 [n, n], n = h·w, rows sum to 1."""
    wanted = together(labels, rng) ** POWER + np.float32(FLOOR)
    return wanted / wanted.sum(axis=1, keepdims=True)

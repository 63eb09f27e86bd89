"""Segmentation by the statistics of one picture alone: colours that often meet belong together.

After Isola, Zoran, Krishnan and Adelson, "Crisp boundary detection using pointwise mutual information" (ECCV 2014): the
affinity of two near places is the pointwise mutual information of their colours, PMI_ρ(a, b) = log (P(a, b)^ρ /
(P(a) P(b))), where P is estimated from this picture. Leaves of three greens that meet everywhere are one texture; two
greens that meet along one line only are two things. Here colours are words of a vocabulary and P a smoothed table: the
probability of a word, where the paper has a density, so a colour with many words has less of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

REACH = 5  # cells between two places whose affinity counts
FALL = 2.0  # cells over which a pair's share of the statistics falls by e
WORDS = 64  # of the vocabulary of colours
CHROMA = 1.4  # weight of Lab's a and b against its lightness
TEXTURE_WINDOW = 9  # pixels in which the contrast of the lightness is measured
VECTORS = 16  # of the spectral embedding


def embed(
    picture: NDArray[np.uint8], shape: tuple[int, int], bandwidth: float, rho: float, texture: bool
) -> NDArray[np.float64]:
    """Places of one thing near each other: float64 [h, w, 16], the spectral embedding of the affinities.

    The eigenvectors of the normalised Laplacian with the smallest eigenvalues λ but the first, each with standard
    deviation √(λ₁ / λ), as in gPb (Arbelaez et al., PAMI 2011, section 3.2).

    Args:
        picture: uint8 [H, W, 3] BGR.
        shape: (h, w) of the cells, more than 48 in all.
        bandwidth: over which colours of 0…1 are smoothed in the statistics.
        rho: ρ above; the larger it is, the more often two colours must meet to be one.
        texture: the contrast of the lightness counts as a fourth colour.
    """
    from scipy.sparse import csr_matrix, diags
    from scipy.sparse.linalg import eigsh

    colours = _colours(picture, shape, texture)
    first, second, affinity = _affinities(colours, bandwidth, rho)
    count = shape[0] * shape[1]
    places = np.concatenate((first, second)), np.concatenate((second, first))
    near = csr_matrix((np.concatenate((affinity, affinity)), places), shape=(count, count))
    root = np.sqrt(np.asarray(near.sum(axis=1)).ravel())
    start = np.random.default_rng(0).standard_normal(count)  # the same result in every run
    scale = diags(1 / root)
    values, vectors = eigsh(scale @ near @ scale, VECTORS + 1, which="LA", tol=1e-4, ncv=3 * VECTORS, v0=start)
    order = np.argsort(-values)[1:]
    small = np.maximum(1 - values[order], 1e-5)
    vectors = (vectors / root[:, None])[:, order]
    vectors *= np.sqrt(small[0] / small) / np.maximum(vectors.std(axis=0), 1e-9)
    return np.asarray(vectors.reshape(*shape, VECTORS), np.float64)


def _colours(picture: NDArray[np.uint8], shape: tuple[int, int], texture: bool) -> NDArray[np.float32]:
    """Lab of every cell, lightness 0…1, and on request the contrast of the lightness: float32 [h, w, 3 or 4]."""
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_BGR2LAB)
    size = shape[::-1]
    cells: Any = cv2.resize(lab, size, interpolation=cv2.INTER_AREA)
    cells = cells * np.array([1 / 100, CHROMA / 110, CHROMA / 110], np.float32)
    if not texture:
        return np.asarray(cells, np.float32)
    light = lab[..., 0] / 100
    mean, square = (cv2.boxFilter(plane, -1, (TEXTURE_WINDOW, TEXTURE_WINDOW)) for plane in (light, light * light))
    contrast: Any = cv2.resize(square - mean * mean, size, interpolation=cv2.INTER_AREA)
    return np.dstack((cells, np.sqrt(np.maximum(contrast, 0)))).astype(np.float32)


def _affinities(
    colours: NDArray[np.float32], bandwidth: float, rho: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Every pair of cells within reach of each other, once, and exp(PMI) of their colours: [P] each."""
    height, width, channels = colours.shape
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 12, 1e-4)
    count = min(WORDS, height * width)
    flat = colours.reshape(-1, channels)
    found, centres = cv2.kmeans(flat, count, np.empty(0, np.int32), stop, 1, cv2.KMEANS_PP_CENTERS)[1:]
    word = found.ravel()

    first, second, weight = _pairs(height, width)
    table = np.bincount(word[first] * count + word[second], weight, count * count).reshape(count, count)
    apart = np.square(centres[:, None] - centres[None]).sum(axis=-1)
    smooth = np.exp(-apart / (2 * bandwidth**2))
    smooth /= smooth.sum(axis=0)
    joint = smooth @ (table + table.T) @ smooth.T
    joint /= joint.sum()
    single = joint.sum(axis=1)
    information = rho * np.log(joint + 1e-12) - np.log(np.multiply.outer(single, single) + 1e-12)
    return first, second, np.exp(information)[word[first], word[second]]


def _pairs(height: int, width: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Every pair of cells at most REACH apart, once, and its share of the statistics: [P] each."""
    cells = np.arange(height * width).reshape(height, width)
    offsets = [
        (y, x)
        for y in range(REACH + 1)
        for x in range(-REACH, REACH + 1)
        if (y, x) > (0, 0) and y * y + x * x <= REACH * REACH and y < height and abs(x) < width
    ]
    firsts, seconds, weights = [], [], []
    for y, x in offsets:
        first = cells[: height - y, max(0, -x) : width - max(0, x)].ravel()
        firsts.append(first)
        seconds.append(first + y * width + x)
        weights.append(np.full(len(first), np.exp(-np.hypot(y, x) / FALL)))
    return np.concatenate(firsts), np.concatenate(seconds), np.concatenate(weights)

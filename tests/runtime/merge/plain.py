"""DiffSeg as the paper words it, in float64 and without a shortcut; and maps to try it on."""

from pathlib import Path

import cv2
import numpy as np

DATA = Path(__file__).parents[2] / "data"


def plain_upsample(image, height, width):
    """Bilinear, half-pixel centres, clamped edges."""
    h, w = image.shape
    y = np.clip((np.arange(height) + 0.5) * h / height - 0.5, 0, h - 1)
    x = np.clip((np.arange(width) + 0.5) * w / width - 0.5, 0, w - 1)
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    y1, x1 = np.minimum(y0 + 1, h - 1), np.minimum(x0 + 1, w - 1)
    fy, fx = (y - y0)[:, None], x - x0
    top = image[y0][:, x0] * (1 - fx) + image[y0][:, x1] * fx
    bottom = image[y1][:, x0] * (1 - fx) + image[y1][:, x1] * fx
    return top * (1 - fy) + bottom * fy


def plain_aggregate(pyramid, grids, ratios):
    h, w = grids[0]
    result = np.zeros((h, w, h * w))
    for level, (hr, wr), ratio in zip(pyramid, grids, ratios, strict=True):
        for y in range(h):
            for x in range(w):
                row = level[(y * hr // h) * wr + x * wr // w].astype(np.float64).reshape(hr, wr)
                row = plain_upsample(row, h, w).ravel()
                result[y, x] += ratio * row / row.sum()
    return result.reshape(h * w, h * w)


def plain_divergence(a, b):
    return 0.5 * np.sum((a - b) * (np.log(np.maximum(a, 1e-12)) - np.log(np.maximum(b, 1e-12))), axis=-1)


def plain_anchors(h, w, grid):
    def axis(side):
        step = (side - 1) // (grid - 1)
        start = (side - 1 - step * (grid - 1)) // 2
        return [start + step * i for i in range(grid)]

    return [y * w + x for y in axis(h) for x in axis(w)]


def plain_merge(maps, anchors, thresholds):
    """Proposals, and the smallest distance of any divergence from its threshold: decisions within it may flip."""
    margin = np.inf
    proposals = []
    for anchor in anchors:
        divergence = plain_divergence(maps[anchor], maps)
        margin = min(margin, np.abs(divergence - thresholds[0]).min())
        proposals.append(maps[divergence < thresholds[0]].mean(axis=0))
    for threshold in thresholds[1:]:
        claimed, merged = set(), []
        for i, proposal in enumerate(proposals):
            if i in claimed:
                continue
            divergence = plain_divergence(proposal, np.array(proposals))
            margin = min(margin, np.abs(divergence - threshold).min())
            members = np.flatnonzero(divergence < threshold)
            merged.append(np.mean([proposals[j] for j in members], axis=0))
            claimed.update(members)
        proposals = merged
    return np.array(proposals), margin


def plain_suppress(proposals, grid_shape, size):
    return np.array([plain_upsample(p.reshape(grid_shape), *size) for p in proposals]).argmax(axis=0)


def proportional(grids):
    sides = np.array([np.sqrt(h * w) for h, w in grids])
    return sides / sides.sum()


GRIDS = [
    [(16, 16), (8, 8), (4, 4), (2, 2)],
    [(16, 24), (8, 12), (4, 6)],
    [(20, 12)],
    [(15, 22), (7, 9), (4, 4), (4, 3)],  # nothing divides anything
    [(13, 13), (13, 5)],  # one axis alone is coarser
    [(24, 24), (8, 8), (6, 6)],
]


def random_pyramid(rng, grids, sharpness=3.0, dtype=np.float32):
    """Maps like attention: queries look at the places of like colour, in a picture of a few flat regions."""
    h, w = grids[0]
    seeds = rng.random((5, 2)) * (h, w)
    y, x = np.mgrid[:h, :w] + 0.5
    region = np.argmin([(y - sy) ** 2 + (x - sx) ** 2 for sy, sx in seeds], axis=0)
    picture = rng.normal(size=(5, 4))[region]
    pyramid = []
    for hr, wr in grids:
        small = cv2.resize(picture, (wr, hr), interpolation=cv2.INTER_LINEAR).reshape(hr * wr, 4)
        small = small + 0.1 * rng.normal(size=small.shape)
        distance = ((small[:, None] - small) ** 2).sum(-1)
        maps = np.exp(-sharpness * distance)
        pyramid.append((maps / maps.sum(1, keepdims=True)).astype(dtype))
    return pyramid


def stripes(shape, seen_as=(0, 1, 0)):
    """A pyramid of one level: three upright stripes, in which tokens look at those of the stripes seen as theirs."""
    column = np.broadcast_to(np.arange(shape[1]) * 3 // shape[1], shape).ravel()
    seen = np.array(seen_as)[column]
    maps = 0.02 / len(seen) + (seen == seen[:, None]).astype(np.float32)
    return [(maps / maps.sum(1, keepdims=True)).astype(np.float32)]


def reference(index):
    with np.load(DATA / f"reference_{index}.npz") as data:
        vector = dict(data)
    pyramid = []
    for name in ("q64", "q32", "q16", "q8"):
        total = 0.0
        for q in vector[name].astype(np.float64):
            half = 0.5 * (q * q).sum(1)
            maps = np.exp(q @ q.T - half[:, None] - half)  # at most e⁰: no shift needed
            total = total + maps / maps.sum(1, keepdims=True)
        pyramid.append((total / len(vector[name])).astype(np.float32))
    return pyramid, vector


def changed(value):
    maps = np.full((64, 64), 1 / 64, np.float32)
    maps[5] = value
    return maps


U = {n: np.full((n, n), 1 / n, np.float32) for n in (4, 12, 16, 64)}

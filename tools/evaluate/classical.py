"""Classical methods of segmentation, to compare with. Their defaults are what `tools.evaluate.tune` found best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

ClassicalMethod = Callable[..., NDArray[np.int32]]  # frame, and settings by name


def one_segment(frame: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The whole frame as one segment: int32 [H, W], all 0."""
    return np.zeros(frame.shape[:2], np.int32)


def kmeans_lab(frame: NDArray[np.uint8], clusters: int = 3) -> NDArray[np.int32]:
    """K-means on the pixels' Lab colours, with the same seed on every call: int32 [H, W]."""
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_BGR2LAB).reshape(-1, 3)
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 0.1)
    labels = cv2.kmeans(lab, clusters, np.empty(0, np.int32), stop, 3, cv2.KMEANS_PP_CENTERS)[1]
    return labels.reshape(frame.shape[:2]).astype(np.int32)


def felzenszwalb(frame: NDArray[np.uint8], scale: float = 400, min_size: int = 1000) -> NDArray[np.int32]:
    """Felzenszwalb and Huttenlocher's graph segmentation (IJCV 2004), by scikit-image: int32 [H, W]."""
    from skimage.segmentation import felzenszwalb as segment

    return np.asarray(segment(frame[..., ::-1], scale=scale, min_size=int(min_size)), np.int32)


def slic_merged(
    frame: NDArray[np.uint8], pieces: int = 400, compactness: float = 20, threshold: float = 20
) -> NDArray[np.int32]:
    """SLIC superpixels (Achanta et al., PAMI 2012) and merging of their adjacency graph, by scikit-image: int32 [H, W].

    The two neighbours whose mean colours in Lab are nearest become one, until all differ by at least `threshold`.
    """
    from skimage.graph import merge_hierarchical, rag_mean_color
    from skimage.segmentation import slic

    labels = slic(frame[..., ::-1], n_segments=int(pieces), compactness=compactness, start_label=0)
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_BGR2LAB)

    def distance(graph: Any, gone: int, kept: int, neighbour: int) -> dict[str, float]:
        difference = graph.nodes[kept]["mean color"] - graph.nodes[neighbour]["mean color"]
        return {"weight": float(np.linalg.norm(difference))}

    def unite(graph: Any, gone: int, kept: int) -> None:
        first, second = graph.nodes[gone], graph.nodes[kept]
        second["total color"] = second["total color"] + first["total color"]
        second["pixel count"] += first["pixel count"]
        second["mean color"] = second["total color"] / second["pixel count"]

    graph = rag_mean_color(lab, labels)
    merged = merge_hierarchical(labels, graph, threshold, False, True, unite, distance)
    return np.asarray(merged, np.int32)


def mean_shift(
    frame: NDArray[np.uint8], space: float = 16, colour: float = 16, tolerance: float = 2, smallest: int = 1500
) -> NDArray[np.int32]:
    """Mean shift (Comaniciu and Meer, PAMI 2002): int32 [H, W].

    OpenCV filters the frame in Lab. Neighbouring pixels whose filtered colours differ by at most `tolerance` become one
    segment. A segment of fewer than `smallest` pixels joins the neighbour of the most similar colour.
    `space`, `colour`: radii of the filter in pixels and in levels of 8-bit Lab.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    lab = cv2.cvtColor(frame, cv2.COLOR_BGR2LAB)
    filtered = cv2.pyrMeanShiftFiltering(lab, space, colour, maxLevel=1).astype(np.float32)
    index = np.arange(frame.shape[0] * frame.shape[1]).reshape(frame.shape[:2])
    ends = np.hstack(
        [np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()]), np.stack([index[:-1].ravel(), index[1:].ravel()])]
    )
    colours = filtered.reshape(-1, 3)
    near = np.linalg.norm(colours[ends[0]] - colours[ends[1]], axis=1) <= tolerance
    graph = coo_array((np.ones(int(near.sum()), np.int8), tuple(ends[:, near])), (index.size, index.size))
    count, parts = connected_components(graph, directed=False)
    sizes = np.bincount(parts, minlength=count)
    means = np.stack([np.bincount(parts, channel, count) for channel in colours.T], axis=1) / sizes[:, None]
    neighbours = np.sort(parts[ends], axis=0)
    neighbours = np.unique(neighbours[:, neighbours[0] != neighbours[1]], axis=1)
    order = np.argsort(np.linalg.norm(means[neighbours[0]] - means[neighbours[1]], axis=1), kind="stable")
    roots = _join_small(sizes.tolist(), neighbours[:, order].T.tolist(), smallest)
    return np.unique(roots[parts], return_inverse=True)[1].reshape(frame.shape[:2]).astype(np.int32)


def _join_small(sizes: list[int], pairs: list[list[int]], smallest: int) -> NDArray[np.intp]:
    """Join each pair in turn if one of its parts is smaller than `smallest`; return the root of every part."""
    parents = list(range(len(sizes)))

    def root(part: int) -> int:
        while parents[part] != part:
            parents[part] = parents[parents[part]]
            part = parents[part]
        return part

    for pair in pairs:
        first, second = root(pair[0]), root(pair[1])
        if first != second and min(sizes[first], sizes[second]) < smallest:
            parents[second] = first
            sizes[first] += sizes[second]
    return np.array([root(part) for part in range(len(sizes))], np.intp)


METHODS: dict[str, ClassicalMethod] = {
    "felzenszwalb": felzenszwalb,
    "mean-shift": mean_shift,
    "slic-merged": slic_merged,
    "kmeans-lab": kmeans_lab,
    "one-segment": one_segment,
}

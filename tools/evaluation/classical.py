"""Classical unsupervised segmentation, each with one fixed setting, to compare with."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Method = Callable[[NDArray[np.uint8]], NDArray[np.int32]]


def one_segment(frame: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The whole frame as one segment: int32 [H, W], all 0."""
    return np.zeros(frame.shape[:2], np.int32)


def kmeans_lab(frame: NDArray[np.uint8], clusters: int = 6) -> NDArray[np.int32]:
    """K-means on the pixels' Lab colours, seeded alike on every call: int32 [H, W]."""
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_BGR2LAB).reshape(-1, 3)
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 0.1)
    labels = cv2.kmeans(lab, clusters, np.empty(0, np.int32), stop, 3, cv2.KMEANS_PP_CENTERS)[1]
    return labels.reshape(frame.shape[:2]).astype(np.int32)


def felzenszwalb(frame: NDArray[np.uint8], scale: float = 400) -> NDArray[np.int32]:
    """Felzenszwalb and Huttenlocher's graph segmentation as scikit-image has it: int32 [H, W]."""
    from skimage.segmentation import felzenszwalb as segment

    return np.asarray(segment(frame[..., ::-1], scale=scale), np.int32)


METHODS: dict[str, Method] = {
    "felzenszwalb": felzenszwalb,
    "kmeans-lab": kmeans_lab,
    "one-segment": one_segment,
}

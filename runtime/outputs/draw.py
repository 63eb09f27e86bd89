"""Drawing labels: colours, borders, overlays and label pictures."""

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def palette(count: int) -> "NDArray[np.uint8]":
    """uint8 [count, 3] BGR: colours far apart for neighbours in number, the same for the same index always.

    Hues step by the golden angle, so that any run of indices is spread over the circle; brightness and saturation
    alternate to tell hues apart that come close.
    """
    index = np.arange(count)
    hsv = np.empty((1, count, 3), np.uint8)
    hsv[0, :, 0] = np.round(index * 180 * 0.381966 + 8) % 180
    hsv[0, :, 1] = np.array([230, 150, 255, 190])[index % 4]
    hsv[0, :, 2] = np.array([255, 235, 190, 150])[index // 2 % 4]
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0] if count else hsv[0]


def borders(labels: "NDArray[np.int32]", thickness: int = 1) -> "NDArray[np.bool_]":
    """bool [H, W]: pixels whose right or lower neighbour has another label, widened to `thickness` pixels."""
    edges: Any = np.zeros(labels.shape, np.uint8)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= labels[:-1] != labels[1:]
    if thickness > 1:
        edges = cv2.dilate(edges, np.ones((thickness, thickness), np.uint8))
    return edges.astype(bool)


def paint(labels: "NDArray[np.int32]") -> "NDArray[np.uint8]":
    """uint8 [H, W, 3] BGR: every label in its colour, which depends on nothing but its number."""
    return palette(int(labels.max(initial=0)) + 1)[labels]


def draw_overlay(frame: "NDArray[np.uint8]", labels: "NDArray[np.int32]", opacity: float = 0.5) -> "NDArray[np.uint8]":
    """The frame under its segments' colours with white borders: uint8 [H, W, 3] BGR."""
    colours = paint(labels)
    overlay = cv2.addWeighted(frame, 1 - opacity, colours, opacity, 0)
    # About one pixel of border for every 400 of the frame, so that it shows at any size.
    overlay[borders(labels, 1 + min(frame.shape[:2]) // 400)] = 255
    return np.asarray(overlay, np.uint8)


def label_image(labels: "NDArray[np.int32]") -> "NDArray[np.uint8] | NDArray[np.uint16]":
    """Single-channel label picture [H, W], 0-based: uint8 where all labels are below 256, else uint16."""
    return labels.astype(np.uint8) if labels.max(initial=0) < 256 else labels.astype(np.uint16)

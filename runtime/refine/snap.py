"""Borders that follow the image's edges: the guided filter on the segments' masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from runtime.labels import count_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.pyramid.weights import Shape


PIXELS_PER_TOKEN = 4  # at which the filter's coefficients are found; its window is one token to each side


EPSILON = 1e-3  # variance of a colour, of 0…1, below which a window counts as flat


PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))  # a symmetric 3×3 matrix, as six planes


def snap(labels: NDArray[np.int32], frame: NDArray[np.uint8], tokens: Shape) -> NDArray[np.int32]:
    """Move the borders of segments to edges of the image that are within about a token of them.

    Every segment's mask is filtered by the guided filter with the frame as guide (He, Sun and Tang, "Guided Image
    Filtering", PAMI 2013, equations 14 to 16): in each window the mask becomes the linear function of the colour that
    fits it best. A pixel takes the segment of the largest value. As in "Fast Guided Filter" (He and Sun, 2015) the
    coefficients are found on a smaller picture, and applied to the frame itself.

    Args:
        labels: int32 [H, W], not negative.
        frame: uint8 [H, W, 3], any order of colours.
        tokens: (h, w) of the tokens that the labels come from; the window reaches one token to each side.

    Returns:
        int32 [H, W]: no new labels; a label that wins no pixel is gone.
    """
    present = np.flatnonzero(count_pixels(labels))
    if len(present) == 1:
        return labels
    size = tuple(min(side, PIXELS_PER_TOKEN * count) for side, count in zip(labels.shape, tokens, strict=True))
    radii = tuple(max(1, round(side / count)) for side, count in zip(size, tokens, strict=True))
    colours = frame.astype(np.float32)
    colours /= 255
    guide = _shrink(colours, size)
    mean, inverse = _colour_statistics(guide, radii)
    planes = [np.ascontiguousarray(colours[..., channel]) for channel in range(3)]
    refined = labels.copy()
    best = np.zeros(labels.shape, np.float32)  # the values of all masks sum to 1: one is above 0
    for label in present:
        mask = _shrink((labels == label).view(np.uint8) * np.float32(1), size)
        inner = _support(mask, radii)
        window = _crop(inner, size, labels.shape)
        coefficients = _coefficients(mask[inner], guide[inner], mean[inner], inverse[(..., *inner)], radii)
        whole = np.zeros((4, *size), np.float32)
        whole[(..., *inner)] = coefficients
        *slopes, value = (cv2.resize(plane, labels.shape[::-1])[window] for plane in whole)
        for slope, plane in zip(slopes, planes, strict=True):
            slope *= plane[window]
            value += slope
        np.copyto(refined[window], label, where=value > best[window])
        np.maximum(best[window], value, out=best[window])
    return refined


def _support(mask: NDArray[np.float32], radii: tuple[int, ...]) -> tuple[slice, slice]:
    """The rectangle outside of which the filtered mask is 0: two windows are taken, one after the other."""
    x, y, width, height = cv2.boundingRect((mask > 0).view(np.uint8))
    down, across = 2 * radii[0], 2 * radii[1]
    return np.s_[max(0, y - down) : y + height + down, max(0, x - across) : x + width + across]


def _crop(inner: tuple[slice, slice], size: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The rectangle of the frame that a rectangle of the small picture reaches by interpolation."""
    ys, xs = (
        slice(max(0, (part.start - 1) * whole // small), -(-(part.stop + 1) * whole // small))
        for part, small, whole in zip(inner, size, shape, strict=True)
    )
    return ys, xs


def _shrink(picture: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA), np.float32)


def _box(picture: NDArray[np.float32], radii: tuple[int, ...]) -> NDArray[np.float32]:
    """Mean over a window of `radii` (y, x) to each side; a window beyond the frame sees its reflection."""
    window = (2 * radii[1] + 1, 2 * radii[0] + 1)
    return np.asarray(cv2.boxFilter(picture, -1, window, borderType=cv2.BORDER_REFLECT), np.float32)


def _colour_statistics(
    guide: NDArray[np.float32], radii: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean colour of every window, [h, w, 3], and (covariance + ε)⁻¹ of the colours in it, six planes [6, h, w]."""
    mean = _box(guide, radii)
    xx, xy, xz, yy, yz, zz = (
        _box(guide[..., i] * guide[..., j], radii) - mean[..., i] * mean[..., j] + np.float32(EPSILON * (i == j))
        for i, j in PAIRS
    )
    cofactors = (yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy, xx * zz - xz * xz, xy * xz - xx * yz)
    inverse = np.stack((*cofactors, xx * yy - xy * xy))
    inverse /= xx * inverse[0] + xy * inverse[1] + xz * inverse[2]
    return mean, inverse


def _coefficients(
    mask: NDArray[np.float32],
    guide: NDArray[np.float32],
    mean: NDArray[np.float32],
    inverse: NDArray[np.float32],
    radii: tuple[int, ...],
) -> list[NDArray[np.float32]]:
    """Three slopes and the offset of mask ≈ slopes · colour + offset, each [h, w], mean over the windows at a pixel."""
    share = _box(mask, radii)
    x, y, z = np.moveaxis(_box(guide * mask[..., None], radii) - mean * share[..., None], -1, 0)
    xx, xy, xz, yy, yz, zz = inverse
    slopes = (xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z)
    offset = share - sum(slope * mean[..., channel] for channel, slope in enumerate(slopes))
    return [_box(plane, radii) for plane in (*slopes, offset)]

"""Drawing labels: colours, borders, overlays and label pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

from runtime.errors import shown
from runtime.outputs.lettering import write_names
from runtime.outputs.palette import palette

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.words import Names


class Draw(Protocol):
    """Turns a frame uint8 [H, W, 3] and its labels int32 [H, W] into a picture; the rest as for `draw_overlay`."""

    def __call__(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        *,
        colours: NDArray[np.uint8] | None,
        names: Names | None,
    ) -> NDArray[Any]: ...


ROWS = 256  # coloured at once, where labels do not fit in 8 bits


def borders(labels: NDArray[np.int32], thickness: int = 1) -> NDArray[np.bool_]:
    """bool [H, W]: pixels whose right or lower neighbour has another label, widened to `thickness` pixels.

    frame[borders(labels)] = 255  # white borders
    """
    edges = np.zeros(labels.shape, bool)
    np.not_equal(labels[:, :-1], labels[:, 1:], out=edges[:, :-1])
    edges[:-1] |= labels[:-1] != labels[1:]
    if thickness > 1:
        cv2.dilate(edges.view(np.uint8), np.ones((thickness, thickness), np.uint8), dst=edges.view(np.uint8))
    return edges


def paint(labels: NDArray[np.int32], colours: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Every label in its colour: uint8 [H, W, 3] BGR.

        cv2.imwrite("segments.png", paint(segmenter(frame).labels))

    Args:
        labels: integers [H, W], not negative.
        colours: uint8 [N, 3] BGR for labels below N, such as a `Painter` gives; the palette if left out.

    Raises:
        ValueError: if there is a label without a colour.
    """
    count = int(labels.max(initial=0)) + 1
    if colours is None:
        colours = palette(count)
    elif len(colours) < count:
        raise ValueError(f"colours: expected at least {count}, one for each label, found {len(colours)}")
    if count <= 256:
        table = np.zeros((256, 1, 3), np.uint8)
        table[:count, 0] = colours[:count]
        return np.asarray(cv2.applyColorMap(labels.astype(np.uint8), table), np.uint8)
    # Four bytes at once are looked up several times faster than three, in parts so that little memory is taken.
    padded = np.zeros((len(colours), 4), np.uint8)
    padded[:, :3] = colours
    words = padded.view(np.uint32)[:, 0]
    painted = np.empty((*labels.shape, 3), np.uint8)
    for top in range(0, len(labels), ROWS):
        part = np.take(words, labels[top : top + ROWS])
        cv2.cvtColor(part.view(np.uint8).reshape(*part.shape, 4), cv2.COLOR_BGRA2BGR, dst=painted[top : top + ROWS])
    return painted


def draw_overlay(
    frame: NDArray[np.uint8],
    labels: NDArray[np.int32],
    opacity: float = 0.5,
    *,
    colours: NDArray[np.uint8] | None = None,
    names: Names | None = None,
) -> NDArray[np.uint8]:
    """The frame under its segments' colours, with white borders between them: uint8 [H, W, 3] BGR.

        cv2.imwrite("overlay.png", draw_overlay(frame, segmenter(frame).labels))

    Args:
        frame: uint8 [H, W, 3] BGR.
        labels: integers [H, W], not negative.
        opacity: of the colours, from 0 (the frame alone) to 1 (colours alone).
        colours: see `paint`.
        names: of the segments, each written where it is farthest from the segment's border.

    Raises:
        ValueError: if frame and labels are no arrays or differ in size, the opacity is not from 0 to 1, or a label has
            no colour.
    """
    for name, given, form in (("frame", frame, "uint8 [H, W, 3]"), ("labels", labels, "integers [H, W]")):
        if not isinstance(given, np.ndarray):
            raise ValueError(f"{name}: expected {form}, found {shown(given)}")
    if frame.shape[:2] != labels.shape:
        raise ValueError(f"labels: expected the frame's size {list(frame.shape[:2])}, found {list(labels.shape)}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected 0 to 1, found {opacity}")
    overlay: Any = paint(labels, colours)
    cv2.addWeighted(frame, 1 - opacity, overlay, opacity, 0, dst=overlay)
    # About one pixel of border for every 400 of the frame, so that it shows at any size.
    edges = borders(labels, 1 + min(frame.shape[:2]) // 400).view(np.uint8)
    drawn = np.asarray(cv2.copyTo(np.full_like(overlay, 255), edges, overlay), np.uint8)
    if names is not None:
        write_names(drawn, labels, names)
    return drawn


def label_image(labels: NDArray[np.int32]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Single-channel label picture [H, W], 0-based: uint8 where all labels are below 256, else uint16."""
    return labels.astype(np.uint8) if labels.max(initial=0) < 256 else labels.astype(np.uint16)

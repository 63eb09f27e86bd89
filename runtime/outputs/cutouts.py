"""A PNG for every segment: what the frame shows there, transparent elsewhere, cropped to the segment's box."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.outputs.cut import SegmentFolder, SegmentFolders

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from runtime.outputs.form import ClipForm
    from runtime.outputs.sinks import Sink
    from runtime.outputs.target import Target


def picture(target: Target) -> Sink:
    """`<stem>_cutouts/000000.png` and so on, by label."""
    return SegmentFolder(target.path("_cutouts"), cut_out)


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_cutouts/000000/000000.png` and so on, by frame and label."""
    return SegmentFolders(target.path("_cutouts"), cut_out)


def cut_out(frame: NDArray[np.uint8], mask: NDArray[np.bool_], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """The part of a frame uint8 [H, W, 3] BGR in a mask bool [H, W]: uint8 [height, width, 4] BGRA of the box."""
    x, y, width, height = box
    part = np.s_[y : y + height, x : x + width]
    inside = mask[part]
    return np.dstack([frame[part] * inside[..., None], inside.view(np.uint8) * np.uint8(255)])

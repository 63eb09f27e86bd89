"""A PNG for every segment: 255 in it, 0 elsewhere, of the frame's size."""

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
    """`<stem>_masks/000000.png` and so on, by label."""
    return SegmentFolder(target.path("_masks"), _mask)


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_masks/000000/000000.png` and so on, by frame and label."""
    return SegmentFolders(target.path("_masks"), _mask)


def _mask(frame: NDArray[np.uint8], mask: NDArray[np.bool_], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    return mask.view(np.uint8) * np.uint8(255)

"""Kinds of output: what each draws."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.outputs.draw import draw_overlay, label_image, paint

if TYPE_CHECKING:
    from numpy.typing import NDArray


Draw = Callable[["NDArray[np.uint8]", "NDArray[np.int32]"], "NDArray[np.uint8] | NDArray[np.uint16]"]


KINDS: dict[str, Draw] = {
    "overlay": draw_overlay,
    "labels": lambda frame, labels: label_image(labels),
    "segments": lambda frame, labels: paint(labels),
}


def output_path(folder: Path, target: Path, kind: str) -> Path:
    """Where the picture of a kind goes: `<folder>/<target>_<kind>.png`."""
    return folder / target.parent / f"{target.name}_{kind}.png"

"""Kinds of output: what each draws."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.outputs.draw import draw_overlay, label_image, paint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.result import Result


Draw = Callable[["NDArray[np.uint8]", "Result"], "NDArray[np.uint8] | NDArray[np.uint16]"]


KINDS: dict[str, Draw] = {
    "overlay": draw_overlay,
    "labels": label_image,
    "segments": lambda frame, result: paint(result.labels),
}


def output_path(folder: Path, target: Path, kind: str) -> Path:
    """Where the picture of a kind goes: `<folder>/<target>_<kind>.png`."""
    return folder / target.parent / f"{target.name}_{kind}.png"

"""Label pictures: a single channel, 0-based, 8 or 16 bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from runtime.files import is_own_output
from runtime.outputs.draw import label_image
from runtime.outputs.png import encode_png, write_encoded
from runtime.outputs.sinks import PictureSink, Sink

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from runtime.outputs.form import ClipForm


def picture(stem: Path) -> Sink:
    """`<stem>_labels.png`."""
    return PictureSink(stem.with_name(f"{stem.name}_labels.png"), lambda frame, labels, *, colours: label_image(labels))


def clip(stem: Path, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_labels/000000.png` and so on."""
    return LabelFolder(stem.with_name(f"{stem.name}_labels"))


class LabelFolder(Sink):
    """`<folder>/000000.png` and so on: one label picture per frame, named by the frame's number."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._runs: list[range] = []  # numbers written; few, however long the clip

    def prepare(
        self, frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None = None
    ) -> bytes:
        """The PNG."""
        return encode_png(label_image(labels))

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Write one PNG, whole or not at all."""
        path = self.path / f"{number:06d}.png"
        write_encoded(path, prepared)
        if self._runs and number == self._runs[-1].stop:
            self._runs[-1] = range(self._runs[-1].start, number + 1)
        else:
            self._runs.append(range(number, number + 1))
        return path

    def close(self) -> None:
        """Remove the pictures of an earlier run that this one has not replaced."""
        if not self._runs or not self.path.is_dir():
            return
        for path in self.path.glob("*.png"):
            numbered = re.fullmatch(r"\d{6,}", path.stem)
            if numbered and not any(int(path.stem) in run for run in self._runs) and is_own_output(path):
                path.unlink(missing_ok=True)

"""A PNG for every segment: its mask, or what the frame shows there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.files import is_own_output
from runtime.outputs.measure import measure
from runtime.outputs.png import encode_png, write_encoded
from runtime.outputs.sinks import Numbers, Sink

if TYPE_CHECKING:
    from fractions import Fraction
    from pathlib import Path

    from numpy.typing import NDArray

    from runtime.words import Names

    # Frame, mask bool [H, W], box x, y, width, height → a picture.
    Cut = Callable[[NDArray[np.uint8], NDArray[np.bool_], tuple[int, int, int, int]], NDArray[np.uint8]]


class SegmentFolder(Sink):
    """`<folder>/000000.png` and so on: one picture per segment of a photograph, named by its label."""

    def __init__(self, folder: Path, cut: Cut) -> None:
        self.path, self._cut = folder, cut

    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
    ) -> dict[str, bytes]:
        """The PNGs by name."""
        found = measure(labels)
        prepared = {}
        for label, box in zip(found.labels.tolist(), found.boxes.tolist(), strict=True):
            picture = self._cut(frame, labels == label, tuple(box))
            prepared[f"{label:06d}.png"] = encode_png(picture)
        return prepared

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Write each PNG whole or not at all, and remove those of an earlier run that are not among them."""
        self._write(self.path, prepared)
        return self.path

    def close(self) -> None:
        """Nothing is left to do."""

    def _write(self, folder: Path, prepared: dict[str, bytes]) -> None:
        for name, data in prepared.items():
            write_encoded(folder / name, data)
        for path in folder.glob("*.png"):
            if path.name not in prepared and re.fullmatch(r"\d{6,}", path.stem) and is_own_output(path):
                path.unlink(missing_ok=True)


class SegmentFolders(SegmentFolder):
    """`<folder>/000000/000000.png` and so on: of a clip, a folder for every frame."""

    def __init__(self, folder: Path, cut: Cut) -> None:
        super().__init__(folder, cut)
        self._written = Numbers()

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Write a frame's folder."""
        folder = self.path / f"{number:06d}"
        self._write(folder, prepared)
        self._written.add(number)
        return folder

    def close(self) -> None:
        """Empty the folders of an earlier run that this one has not replaced."""
        if not self._written:
            return
        for folder in self.path.iterdir():
            if re.fullmatch(r"\d{6,}", folder.name) and int(folder.name) not in self._written:
                self._write(folder, {})
                with contextlib.suppress(OSError):  # somebody else's files are in it
                    folder.rmdir()

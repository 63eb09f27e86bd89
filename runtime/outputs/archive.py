"""A clip's labels in one .npz."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.files import OWN_ARCHIVE, part_path
from runtime.outputs.draw import label_image
from runtime.outputs.labels import picture
from runtime.outputs.sinks import Sink, explain

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from runtime.outputs.form import ClipForm

__all__ = ["ArchiveSink", "clip", "picture"]  # a photograph's labels need no archive


def clip(stem: Path, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_labels.npz`."""
    return ArchiveSink(stem.with_name(f"{stem.name}_labels.npz"))


class ArchiveSink(Sink):
    """A .npz for `numpy.load`: the labels [H, W] of every frame under its number, "000000", and "times" in seconds.

    Each frame is compressed when it comes, so the archive may be longer than memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = part_path(path)
        self._zip: zipfile.ZipFile | None = None
        self._times: list[float] = []

    def prepare(
        self, frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None = None
    ) -> NDArray[Any]:
        """Labels uint8 or uint16."""
        return label_image(labels)

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Add one frame's labels, uint8 or uint16."""
        try:
            if self._zip is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._zip = zipfile.ZipFile(self._part, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
                self._zip.comment = OWN_ARCHIVE
            self._add(self._zip, f"{number:06d}", prepared)
        except OSError as error:
            raise explain(self.path, error, f"{len(self._times)} frames were done") from None
        self._times.append(float(time))
        return self.path

    def close(self) -> None:
        """Add the times and write the directory."""
        if self._zip is None:
            return
        archive, self._zip = self._zip, None
        try:
            if self._times:
                self._add(archive, "times", np.array(self._times))
            archive.close()
            if self._times:
                self._part.replace(self.path)
        except OSError as error:
            raise explain(self.path, error, "the archive could not be finished") from None
        finally:
            self._part.unlink(missing_ok=True)

    @staticmethod
    def _add(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
        data = io.BytesIO()
        np.save(data, array)
        archive.writestr(f"{name}.npy", data.getbuffer())

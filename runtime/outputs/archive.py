"""A clip's labels in one .npz."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.files import OWN_ARCHIVE, part_path
from runtime.outputs.draw import label_image
from runtime.outputs.failures import explain
from runtime.outputs.labels import picture
from runtime.outputs.sinks import Sink

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from runtime.outputs.form import ClipForm
    from runtime.outputs.target import Target
    from runtime.words import Names

__all__ = ["ArchiveSink", "clip", "picture"]  # a photograph's labels need no archive


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_labels.npz`."""
    return ArchiveSink(target.path("_labels.npz"))


class ArchiveSink(Sink):
    """A .npz for `numpy.load`: the labels [H, W] of every frame under its number, "000000", and "times" in seconds.

    Each frame is compressed when it comes, so the archive may be longer than memory. `more`: arrays to add at the end.
    """

    def __init__(self, path: Path, more: Mapping[str, NDArray[Any]] = MappingProxyType({})) -> None:
        self.path, self._more = path, more
        self._part = part_path(path)
        self._zip: zipfile.ZipFile | None = None
        self._times: list[float] = []

    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
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
            add_array(self._zip, f"{number:06d}", prepared)
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
                for name, array in {**self._more, "times": np.array(self._times)}.items():
                    add_array(archive, name, array)
            archive.close()
            if self._times:
                self._part.replace(self.path)
        except OSError as error:
            raise explain(self.path, error, "the archive could not be finished") from None
        finally:
            self._part.unlink(missing_ok=True)


def add_array(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    """Add an array to an archive for `numpy.load`. Raises OSError where it cannot be written."""
    data = io.BytesIO()
    np.save(data, array)
    archive.writestr(f"{name}.npy", data.getbuffer())

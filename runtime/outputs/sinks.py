"""Where a clip's labels go: pictures or an archive. Whole files only."""

from __future__ import annotations

import errno
import io
import re
import uuid
import zipfile
from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import DiffSegError
from runtime.files import OWN_ARCHIVE, is_own_output
from runtime.outputs.png import write_png

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Sink(ABC):
    """An output of a clip. Frames come in order; `close` makes the file whole, whatever has come."""

    path: Path

    @abstractmethod
    def write(self, number: int, time: Fraction, image: NDArray[Any]) -> None:
        """Take the frame's picture. `number` from 0 without gaps; `time` in seconds, increasing."""

    @abstractmethod
    def close(self) -> None:
        """Finish, and move into place. Nothing is left where no frame has come."""


def refuse_foreign(path: Path) -> None:
    """Raise DiffSegError when a file, or a folder with numbered pictures, is there that is not this program's."""
    if path.is_dir():
        found = [p for p in path.iterdir() if re.fullmatch(r"\d{6,}\.png", p.name) and not is_own_output(p)]
        other: Path | None = min(found, default=None)
    else:
        other = path if path.exists() and not is_own_output(path) else None
    if other:
        raise DiffSegError(f"{other}: exists and is not this program's; move it away or choose another --output")


def explain(path: Path, error: Any, kept: str) -> DiffSegError:
    """What writing to `path` failed of, with an error of the system or of FFmpeg; `kept`: what there is of it."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else f"cannot be written ({error.strerror or error})"
    return DiffSegError(f"{path}: {what}; {kept}; choose a folder you may write to, with space, by --output")


class PngSink(Sink):
    """`<folder>/000000.png` and so on: one label picture per frame."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._count = 0

    def write(self, number: int, time: Fraction, image: NDArray[Any]) -> None:
        """Write one PNG, whole or not at all."""
        write_png(self.path / f"{number:06d}.png", image)
        self._count = number + 1

    def close(self) -> None:
        """Remove what a longer run before has left behind these frames."""
        if self._count and self.path.is_dir():
            for path in self.path.glob("*.png"):
                if re.fullmatch(r"\d{6,}", path.stem) and int(path.stem) >= self._count and is_own_output(path):
                    path.unlink(missing_ok=True)


class ArchiveSink(Sink):
    """A .npz for `numpy.load`: the labels [H, W] of every frame under its number, "000000", and "times" in seconds.

    Each frame is compressed when it comes, so the archive may be longer than memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(f".{uuid.uuid4().hex}.part")
        self._zip: zipfile.ZipFile | None = None
        self._times: list[float] = []

    def write(self, number: int, time: Fraction, image: NDArray[Any]) -> None:
        """Add one frame's labels, uint8 or uint16."""
        try:
            if self._zip is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._zip = zipfile.ZipFile(self._part, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
                self._zip.comment = OWN_ARCHIVE
            self._add(self._zip, f"{number:06d}", image)
        except OSError as error:
            raise explain(self.path, error, f"{len(self._times)} frames were done") from None
        self._times.append(float(time))

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

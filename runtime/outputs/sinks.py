"""Where the frames of a photograph or a clip are written. Whole files only."""

from __future__ import annotations

import errno
import re
from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError
from runtime.files import is_own_output
from runtime.outputs.png import encode_png, write_encoded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.outputs.draw import Draw


class Sink(ABC):
    """One output of a photograph or a clip. `close` makes it whole, whatever has come.

    Attributes:
        path: the file, or the folder of one file per frame.
    """

    path: Path

    @abstractmethod
    def prepare(
        self, frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None = None
    ) -> Any:
        """Draw and encode what `write` takes. From any thread, several frames at a time, in any order.

        `colours`: uint8 [N, 3] BGR of the labels; None: the palette's.
        """

    @abstractmethod
    def write(self, number: int, time: Fraction, prepared: Any) -> Path | None:
        """Write a frame; in order. `number` of the frame in its clip; `time` in seconds, increasing.

        Returns the file it went to. Raises DiffSegError where it cannot be written.
        """

    @abstractmethod
    def close(self) -> None:
        """Finish, and move into place. Nothing is left where no frame has come."""


class PictureSink(Sink):
    """One PNG."""

    def __init__(self, path: Path, draw: Draw, *, flat: bool | None = None) -> None:
        """`flat`: see `encode_png`."""
        self.path, self._draw, self._flat = path, draw, flat

    def prepare(
        self, frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None = None
    ) -> bytes:
        """The file's content."""
        return encode_png(self._draw(frame, labels, colours=colours), flat=self._flat)

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Write the file, whole or not at all."""
        write_encoded(self.path, prepared)
        return self.path

    def close(self) -> None:
        """Nothing is left to do."""


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
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else f"cannot be written ({getattr(error, 'strerror', None) or error})"
    return DiffSegError(f"{path}: {what}; {kept}; choose a folder you may write to, with space, by --output")

"""Where the frames of a photograph or a clip are written. Whole files only."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.files import is_own_output, refuse_foreign_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.outputs.draw import Draw
    from runtime.words import Names

    # Frame, labels, colours, names → a file's content.
    Encode = Callable[[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8] | None, Names | None], bytes]


class Sink(ABC):
    """One output of a photograph or a clip. `close` makes it whole, whatever has come.

    Attributes:
        path: the file, or the folder of one file per frame.
        listing: a further file, which lists this picture with others.
    """

    path: Path
    listing: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files and folders that belong to this photograph or clip alone."""
        return (self.path,)

    @abstractmethod
    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
    ) -> Any:
        """Draw and encode what `write` takes. From any thread, several frames at a time, in any order.

        `colours`: uint8 [N, 3] BGR of the labels; None: the palette's. `names`: the segments' words, if they have them.
        """

    @abstractmethod
    def write(self, number: int, time: Fraction, prepared: Any) -> Path | None:
        """Write a frame; in order. `number` of the frame in its clip; `time` in seconds, increasing.

        Returns the file it went to. Raises DiffSegError where it cannot be written.
        """

    @abstractmethod
    def close(self) -> None:
        """Finish, and move into place. Nothing is left where no frame has come."""


class FileSink(Sink):
    """One file of a photograph. Its content has this program's mark (`runtime.files`)."""

    def __init__(self, path: Path, encode: Encode) -> None:
        self.path, self._encode = path, encode

    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
    ) -> bytes:
        """The file's content."""
        return self._encode(frame, labels, colours, names)

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Write the file, whole or not at all."""
        from runtime.outputs.png import write_encoded

        write_encoded(self.path, prepared)
        return self.path

    def close(self) -> None:
        """Nothing is left to do."""


class PictureSink(FileSink):
    """One PNG."""

    def __init__(self, path: Path, draw: Draw, *, flat: bool | None = None) -> None:
        """`flat`: see `encode_png`."""
        from runtime.outputs.png import encode_png

        super().__init__(
            path,
            lambda frame, labels, colours, names: encode_png(
                draw(frame, labels, colours=colours, names=names), flat=flat
            ),
        )


class Numbers:
    """Numbers of frames, ascending: as few ranges as there are gaps, however long the clip."""

    def __init__(self) -> None:
        self._ranges: list[range] = []

    def add(self, number: int) -> None:
        """Add the next one."""
        if self._ranges and number == self._ranges[-1].stop:
            self._ranges[-1] = range(self._ranges[-1].start, number + 1)
        else:
            self._ranges.append(range(number, number + 1))

    def __contains__(self, number: int) -> bool:
        return any(number in run for run in self._ranges)

    def __bool__(self) -> bool:
        return bool(self._ranges)


class FrameFolder(Sink):
    """`<folder>/000000<suffix>` and so on: one file per frame of a clip, named by the frame's number."""

    def __init__(self, folder: Path, suffix: str, encode: Encode) -> None:
        self.path, self._suffix, self._encode = folder, suffix, encode
        self._written = Numbers()

    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
    ) -> bytes:
        """The file's content."""
        return self._encode(frame, labels, colours, names)

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Write one file, whole or not at all."""
        from runtime.outputs.png import write_encoded

        path = self.path / f"{number:06d}{self._suffix}"
        write_encoded(path, prepared)
        self._written.add(number)
        return path

    def close(self) -> None:
        """Remove the files of an earlier run that this one has not replaced."""
        if not self._written or not self.path.is_dir():
            return
        for path in self.path.glob(f"*{self._suffix}"):
            numbered = re.fullmatch(r"\d{6,}", path.stem)
            if numbered and int(path.stem) not in self._written and is_own_output(path):
                path.unlink(missing_ok=True)


def refuse_foreign(path: Path) -> None:
    """Raise DiffSegError when a file, or a folder with numbered files, is there that is not this program's."""
    if not path.is_dir():
        refuse_foreign_file(path)
        return
    for found in sorted(p for p in path.iterdir() if re.fullmatch(r"\d{6,}\.\w+", p.name)):
        refuse_foreign_file(found)

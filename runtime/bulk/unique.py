"""Whether names are unique, in little memory however many there are."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

from runtime.errors import DiffSegError
from runtime.outputs.journal import key_of

PARTS = 64  # files of hashes; one of them is in memory at a time: 12.5 MB of each 100 million names
KEPT = 256  # hashes of a part that wait in memory
NAMED = 1000  # hashes that are looked up again


class Unique:
    """Takes names one by one, and then says which came twice. Keeps 8 bytes for each on disk, in a temporary folder."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="diffseg-")
        self._waiting = [array("Q") for _ in range(PARTS)]

    def __enter__(self) -> Unique:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def add(self, name: str) -> None:
        """Take one."""
        key = key_of(name)
        part = self._waiting[key % PARTS]
        part.append(key)
        if len(part) >= KEPT:
            self._flush(key % PARTS)

    def check(self, again: Callable[[], Iterable[str]], where: str) -> None:
        """Raise DiffSegError where a name came twice. `again` gives all names once more, to find it."""
        suspected = set(self._doubled())
        if not suspected:
            return
        seen: set[str] = set()
        for name in again():
            if key_of(name) not in suspected:
                continue
            if name in seen:
                raise DiffSegError(f"{where}: expected each id once, found {name!r} twice; leave one of them out")
            seen.add(name)

    def _doubled(self) -> Iterator[int]:
        import numpy as np

        found = 0
        for part in range(PARTS):
            self._flush(part)
            path = self._path(part)
            if not path.exists():
                continue
            keys = np.sort(np.fromfile(path, np.uint64))
            for key in np.unique(keys[1:][keys[1:] == keys[:-1]]).tolist():
                yield key
                found += 1
                if found >= NAMED:
                    return

    def _flush(self, part: int) -> None:
        if self._waiting[part]:
            with self._path(part).open("ab") as file:
                self._waiting[part].tofile(file)
            self._waiting[part] = array("Q")

    def _path(self, part: int) -> Path:
        return Path(self._folder.name) / str(part)

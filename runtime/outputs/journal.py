"""A file of JSON lines that grows while programs run, several at once if need be.

A line is about one target, which is its key "target", and may tell the input's "name". Of several lines about one
target or one name the last counts: a photograph gets another target where one of the same stem is added to its folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from runtime.errors import DiffSegError, NoMoreSpace
from runtime.files import DAMAGE, OWN_JSON, part_path
from runtime.outputs.failures import explain
from runtime.outputs.sinks import refuse_foreign

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

try:
    import fcntl
except ImportError:  # Windows: lines are still added whole, but nothing is compacted
    fcntl = None  # type: ignore[assignment]


INDEX = "resume.jsonl"  # what `--resume` goes by: see `runtime.stream.resume`
MOST_LINE = 64 << 20  # bytes; memory for a longer one is not asked for
Check = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Journal:
    """One such file. `kept`: what messages say of a line that could not be added. `check`: see `scan`."""

    path: Path
    kept: str
    check: Check | None = None

    def begin(self) -> None:
        """Raise DiffSegError where a file of that name is not this program's."""
        if not (self.path.is_file() and not self.path.stat().st_size):  # an empty one is left by a full disk
            refuse_foreign(self.path)

    def add(self, line: bytes) -> None:
        """Add a line, which ends with a newline, or several. Raises DiffSegError where it cannot be written whole."""
        if max(map(len, line.splitlines()), default=0) >= MOST_LINE:
            raise DiffSegError(
                f"{self.path}: expected a line of less than {MOST_LINE >> 20} MB, found more; {self.kept}"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.path) as (file, _):
                size = file.seek(0, os.SEEK_END)
                if not size:
                    line = self._head() + line
                elif file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                    line = b"\n" + line  # a line that a killed or failed run did not finish stays alone
                # One call: also without the lock, lines of two programs do not mix.
                if file.write(line) != len(line):
                    raise NoMoreSpace(f"{self.path}: a line could not be written whole; is the disk full?")
        except OSError as error:
            raise explain(self.path, error, self.kept) from None

    def compact(self, chosen: Callable[[Lines], Iterable[int]]) -> None:
        """Leave only the lines at the offsets that `chosen` gives. Where that is impossible, all stay."""
        if fcntl is None or not self.path.exists():
            return
        part = part_path(self.path)
        with contextlib.suppress(OSError):
            try:
                with _alone(self.path) as (_, locked), self.path.open("rb") as reader, part.open("wb") as out:
                    if not locked:
                        return
                    lines = scan(reader, self.check)
                    kept = list(chosen(lines))
                    if len(kept) == len(lines.targets) and not lines.useless:
                        return
                    out.write(self._head())
                    for offset in kept:
                        reader.seek(offset)
                        out.write(reader.readline())
                    out.flush()
                    part.replace(self.path)
            finally:
                part.unlink(missing_ok=True)

    def _head(self) -> bytes:
        return json.dumps(OWN_JSON | {"journal": self.path.stem}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Lines:
    """Where the lines of a journal are; 32 bytes for each of them.

    Attributes:
        targets: uint64 [L], `key_of` the target. `names`: uint64 [L], `key_of` the name, or the target.
        states: uint64 [L], `key_of` its keys "input" and "made".
        offsets: uint64 [L], in bytes from the file's start.
        useless: whether there are lines that nothing can be read from.
    """

    targets: NDArray[np.uint64]
    names: NDArray[np.uint64]
    states: NDArray[np.uint64]
    offsets: NDArray[np.uint64]
    useless: bool

    def counting(self) -> list[int]:
        """Offsets of the last line of each target and name, in the order of the targets' first lines."""
        found: list[int] = self.offsets[self._last_of_all()].tolist()
        return found

    def listed(self) -> frozenset[int]:
        """The targets of these lines."""
        return frozenset(self.targets[self._last_of_all()].tolist())

    def undisputed(self) -> dict[int, int]:
        """Target → offset of its last line, where the one before it, if there is one, has the same state."""
        _, last = self._ends()
        order = np.argsort(self.targets, kind="stable")
        position = np.empty(len(order), np.intp)
        position[order] = np.arange(len(order))
        before = order[position[last] - 1]
        agree = (self.targets[before] != self.targets[last]) | (self.states[before] == self.states[last])
        kept = last[agree]
        return dict(zip(self.targets[kept].tolist(), self.offsets[kept].tolist(), strict=True))

    def _last_of_all(self) -> NDArray[np.intp]:
        first, last = self._ends()
        last = last[np.argsort(first)]
        by_name = np.lexsort((last, self.names[last]))
        names = self.names[last][by_name]
        newest = np.ones(len(names), bool)
        newest[:-1] = names[1:] != names[:-1]
        return last[np.sort(by_name[newest])]

    def _ends(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The number of every target's first and last line."""
        _, first = np.unique(self.targets, return_index=True)
        _, behind = np.unique(self.targets[::-1], return_index=True)
        return first, len(self.targets) - 1 - behind


def scan(file: IO[bytes], check: Check | None = None) -> Lines:
    """Find the lines of a journal that is open to be read.

    `check`: raises one of DAMAGE for a line that is not to count; it may change what it gets.
    """
    targets, names, states, offsets = array("Q"), array("Q"), array("Q"), array("Q")
    useless = False
    offset = file.seek(0)
    whole = True
    for line in iter(partial(file.readline, MOST_LINE), b""):
        begins, whole = whole, line.endswith(b"\n")
        try:
            entry = json.loads(line if begins and len(line) < MOST_LINE else b"")
            target, name = entry["target"], entry.get("name", "")
            # Its target has the suffix only where there are others of its stem.
            same = target in (name, name.rpartition(".")[0])
            keys = key_of(target), key_of(name if same else target)
            state = key_of(f"{entry.get('input')} {entry.get('made')}")
            if check is not None:
                check(entry)
            targets.append(keys[0])
            names.append(keys[1])
            states.append(state)
            offsets.append(offset)
        except DAMAGE:  # cut by a kill or a full disk, or the first line
            useless |= bool(offset) and bool(line.strip())
        offset += len(line)
    one, two, three, four = (np.frombuffer(numbers, np.uint64) for numbers in (targets, names, states, offsets))
    return Lines(one, two, three, four, useless)


def entries(file: IO[bytes], offsets: Iterable[int]) -> Iterator[dict[str, Any]]:
    """The lines at these offsets."""
    for offset in offsets:
        file.seek(offset)
        yield json.loads(file.readline())


def key_of(text: str) -> int:
    """64 bits for a text, also for a path that is not valid UTF-8; the same in every run."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """A file open to add lines while no other program does; and whether that is certain."""
    while True:
        with path.open("ab+", buffering=0) as file:
            locked = False
            if fcntl is not None:
                with contextlib.suppress(OSError):  # some network drives have no locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                    locked = True
            try:
                current = os.path.samestat(os.fstat(file.fileno()), os.stat(path))  # noqa: PTH116
            except FileNotFoundError:
                current = False
            if current:  # another program may have compacted it while this one waited
                yield file, locked
                return

"""A file that lists all pictures of an output folder, and the journal from which it is assembled.

While a run lasts, the journal `<name>.jsonl` gets one line for each picture. `<name>.json` is assembled from it at the
end of every run, also of one that was interrupted; after a kill the next run does it. Later runs add to both.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import DiffSegError
from runtime.files import OWN_JSON, part_path
from runtime.outputs.sinks import Sink, explain, refuse_foreign

if TYPE_CHECKING:
    from fractions import Fraction
    from pathlib import Path

    from numpy.typing import NDArray

    from runtime.outputs.target import Target

# A picture's entry, its number from 1, and numbers from 1 for whatever the entry holds → what a section lists of it.
Section = Callable[[dict[str, Any], int, Iterator[int]], Iterable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Listing:
    """One kind of such files.

    Attributes:
        name: of the files, without suffix.
        sections: the lists in the assembled file, by their keys.
        rest: what else is in the file.
    """

    name: str
    sections: Mapping[str, Section]
    rest: Mapping[str, object]

    def path(self, folder: Path) -> Path:
        """The assembled file."""
        return folder / f"{self.name}.json"

    def journal(self, folder: Path) -> Path:
        """The journal."""
        return folder / f"{self.name}.jsonl"

    def begin(self, folder: Path) -> None:
        """Raise DiffSegError where a file of that name is not this program's."""
        refuse_foreign(self.path(folder))
        refuse_foreign(self.journal(folder))

    def add(self, folder: Path, line: bytes) -> None:
        """Add a picture's line, which ends with a newline, to the journal. Programs may do so at the same time.

        Raises DiffSegError where it cannot be written.
        """
        journal = self.journal(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with journal.open("ab+", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                if not size:
                    line = _encoded(OWN_JSON | {"journal": self.name}) + line
                elif file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                    line = b"\n" + line  # a line that a killed or failed run did not finish stays alone
                # One call, so that lines of two programs do not mix.
                if file.write(line) != len(line):
                    raise DiffSegError(f"{journal}: a line could not be written whole; is the disk full?")
        except OSError as error:
            raise explain(journal, error, "this picture is not listed") from None

    def finish(self, folder: Path) -> None:
        """Assemble the file from the journal, where there is one. Of a picture's lines the last one counts.

        Memory grows with the number of pictures by some 20 bytes each. Raises DiffSegError where it cannot be written.
        """
        journal, path = self.journal(folder), self.path(folder)
        if not journal.exists():
            return
        part = part_path(path)
        try:
            size = -1
            while size != (now := journal.stat().st_size):  # another program may have added lines meanwhile
                size = now
                self._assemble(journal, part)
                part.replace(path)
        except OSError as error:
            kept = f"{journal.name} is whole, and the next run assembles the file from it"
            raise explain(path, error, kept) from None
        finally:
            part.unlink(missing_ok=True)

    def _assemble(self, journal: Path, part: Path) -> None:
        last = _last_lines(journal)
        with part.open("wb") as out:
            out.write(b'{"info": ' + _encoded(OWN_JSON | {"description": "segments of DiffSeg"}))
            for key, section in self.sections.items():
                out.write(b',\n"%s": [' % key.encode())
                inner = itertools.count(1)
                separator = b"\n"
                for number, entry in enumerate(_entries(journal, last), 1):
                    for item in section(entry, number, inner):
                        out.write(separator + json.dumps(item, separators=(",", ":")).encode())
                        separator = b",\n"
                out.write(b"\n]")
            for key, value in self.rest.items():
                out.write(b',\n"%s": %s' % (key.encode(), json.dumps(value).encode()))
            out.write(b"\n}\n")


class ListSink(Sink):
    """One line of a file that lists all pictures."""

    def __init__(
        self, listing: Listing, target: Target, entry: Callable[[Target, NDArray[np.int32]], dict[str, Any]]
    ) -> None:
        """`entry`: what is listed of a picture with these labels."""
        self.path = listing.path(target.folder)
        self._listing, self._target, self._entry = listing, target, entry

    def prepare(
        self, frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None = None
    ) -> Any:
        """The line."""
        return (
            json.dumps(
                {"target": self._target.key, **self._entry(self._target, labels)}, separators=(",", ":")
            ).encode()
            + b"\n"
        )

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Add the line to the journal."""
        self._listing.add(self._target.folder, prepared)
        return self.path

    def close(self) -> None:
        """Nothing is left to do: the run assembles the file."""


def _encoded(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _last_lines(journal: Path) -> array[int]:
    """The numbers of the journal's lines that count, ascending: of every picture the last one that is whole."""
    keys, lines = array("Q"), array("Q")
    for number, entry in _parsed(journal):
        keys.append(int.from_bytes(hashlib.blake2b(entry["target"].encode(), digest_size=8).digest(), "big"))
        lines.append(number)
    _, first_from_behind = np.unique(np.frombuffer(keys, np.uint64)[::-1], return_index=True)
    counting = np.sort(np.frombuffer(lines, np.uint64)[::-1][first_from_behind])
    return array("Q", counting.tobytes())


def _entries(journal: Path, numbers: array[int]) -> Iterator[dict[str, Any]]:
    """The entries in those lines."""
    wanted = iter(numbers)
    following = next(wanted, None)
    with journal.open("rb") as file:
        for number, line in enumerate(file):
            if following is None:
                return
            if number == following:
                following = next(wanted, None)
                yield json.loads(line)


def _parsed(journal: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and entry of every line that is whole."""
    with journal.open("rb") as file:
        for number, line in enumerate(file):
            try:
                entry = json.loads(line)
            except ValueError:  # cut by a kill or a full disk
                continue
            if isinstance(entry, dict) and isinstance(entry.get("target"), str):
                yield number, entry

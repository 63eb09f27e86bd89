"""A file that lists all pictures of an output folder, and the journal from which it is assembled.

While a run lasts, the journal `<name>.jsonl` gets one line for each picture. `<name>.json` is assembled from it at the
end of every run, also of one that was interrupted; after a kill the next run does it. Later runs add to both.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from runtime.errors import DiffSegError
from runtime.files import DAMAGE, OWN_JSON, part_path
from runtime.outputs.categories import FIRST, Union, categories
from runtime.outputs.failures import explain
from runtime.outputs.journal import Journal, Lines, entries, scan
from runtime.outputs.sinks import Sink, refuse_foreign

if TYPE_CHECKING:
    from fractions import Fraction
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from runtime.outputs.target import Target
    from runtime.words import Names

_END = b"\n}\n"  # of an assembled file

# A picture's entry, its number from 1, and numbers from 1 for whatever the entry holds → what a section lists of it.
Section = Callable[[dict[str, Any], int, Iterator[int]], Iterable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Listing:
    """One kind of such files.

    Attributes:
        name: of the files, without suffix.
        sections: the lists in the assembled file, by their keys.
        rest: what else is in the file.
        restored: a picture's name, size and annotations → its entry.
        segments: where an entry has a list of segments whose `category_id` follows its `words`, the key of that list.
        category: what each category has beside its `id` and `name`, where there is such a list.
    """

    name: str
    sections: Mapping[str, Section]
    rest: Mapping[str, object]
    restored: Callable[[str, list[int], list[dict[str, Any]]], dict[str, Any]]
    segments: str | None = None
    category: Mapping[str, object] = field(default_factory=dict)

    def path(self, folder: Path) -> Path:
        """The assembled file."""
        return folder / f"{self.name}.json"

    def journal(self, folder: Path) -> Path:
        """The journal."""
        return folder / f"{self.name}.jsonl"

    def begin(self, folder: Path) -> None:
        """Raise DiffSegError where a file of that name is not this program's. A journal that is gone is made anew."""
        refuse_foreign(self.path(folder))
        self._lines(folder).begin()
        if self.path(folder).exists() and not self.journal(folder).exists():
            self._restore(folder)

    def add(self, folder: Path, line: bytes) -> None:
        """Add a picture's line, which ends with a newline, to the journal. Programs may do so at the same time.

        Raises DiffSegError where it cannot be written.
        """
        self._lines(folder).add(line)

    def listed(self, folder: Path) -> frozenset[int]:
        """`runtime.outputs.journal.key_of` every target that is listed."""
        try:
            with self.journal(folder).open("rb") as file:
                return scan(file, self._check).listed()
        except OSError:
            return frozenset()

    def finish(self, folder: Path) -> None:
        """Assemble the file from the journal, where there is one, and drop the journal's lines that do not count.

        Of a picture's lines the last one counts, in the place of the first. Memory grows with the number of pictures
        by some 50 bytes each. Raises DiffSegError where the file cannot be written.
        """
        journal, path = self.journal(folder), self.path(folder)
        if not journal.exists() or self._is_newer(path, journal):
            return
        part = part_path(path)
        try:
            while True:
                with journal.open("rb") as file:
                    self._assemble(file, part)
                    part.replace(path)
                    seen, now = os.fstat(file.fileno()), journal.stat()
                # Another program may have added lines meanwhile.
                if os.path.samestat(seen, now) and seen.st_size == now.st_size:
                    break
        except (RecursionError, MemoryError):
            raise self._damaged(journal) from None
        except OSError as error:
            kept = f"{journal.name} is whole, and the next run assembles the file from it"
            raise explain(path, error, kept) from None
        finally:
            part.unlink(missing_ok=True)
        self._lines(folder).compact(Lines.counting)
        with contextlib.suppress(OSError):
            os.utime(path)  # what is compact is not newer

    def _restore(self, folder: Path) -> None:
        """Write the journal from the assembled file, which later runs would otherwise replace by their own pictures."""
        path = self.path(folder)
        entries: dict[int, dict[str, Any]] = {}
        try:
            listed = json.loads(path.read_bytes())
            parts: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in listed["images"]}
            for annotation in listed["annotations"]:
                parts[annotation["image_id"]].append(annotation)
            words = [one["name"] for one in listed.get("categories", ()) if one["id"] > FIRST]
            stems = Counter(image["file_name"].rpartition(".")[0] for image in listed["images"])
            for image in listed["images"]:
                name, size = image["file_name"], [image["height"], image["width"]]
                stem = name.rpartition(".")[0]
                found = {**({"words": words} if words else {}), **self.restored(name, size, parts[image["id"]])}
                # The target has the suffix where there are others of its stem.
                entries[image["id"]] = {"target": stem if stem and stems[stem] == 1 else name, **found}
                self._check(copy.deepcopy(entries[image["id"]]))
        except OSError as error:
            raise DiffSegError(f"{path}: cannot be read ({error.strerror})") from None
        except (*DAMAGE, MemoryError):
            raise self._damaged(path, f" without its journal {self.journal(folder).name}") from None
        lines = [json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries.values()]
        if lines:
            self.add(folder, b"".join(lines))

    def _is_newer(self, path: Path, journal: Path) -> bool:
        """Whether the file is whole, and was assembled after the journal's last line: nothing has to be written."""
        try:
            with path.open("rb") as file:
                file.seek(-len(_END), os.SEEK_END)
                whole = file.read() == _END
            return whole and path.stat().st_mtime_ns > journal.stat().st_mtime_ns
        except OSError:  # also where it is shorter
            return False

    def _lines(self, folder: Path) -> Journal:
        return Journal(self.journal(folder), "this picture is not listed", self._check)

    def _check(self, entry: dict[str, Any]) -> None:
        """Raise one of DAMAGE where nothing can be assembled from a line, whose categories it changes."""
        if self.segments is not None:
            Union().renumber(entry.get("words", ()), entry[self.segments])
        for section in self.sections.values():
            for _ in section(entry, 1, itertools.count(1)):
                pass

    def _damaged(self, path: Path, more: str = "") -> DiffSegError:
        return DiffSegError(
            f"{path}: expected the pictures of earlier runs, found a damaged file{more}; move it away, or choose "
            "another --output"
        )

    def _assemble(self, journal: IO[bytes], part: Path) -> None:
        counting = scan(journal, self._check).counting()
        union = Union()
        with part.open("wb") as out:
            out.write(b'{"info": ' + json.dumps(OWN_JSON | {"description": "segments of DiffSeg"}).encode())
            for key, section in self.sections.items():
                out.write(b',\n"%s": [' % key.encode())
                inner = itertools.count(1)
                separator = b"\n"
                for number, entry in enumerate(entries(journal, counting), 1):
                    if self.segments is not None:
                        union.renumber(entry.get("words", ()), entry[self.segments])
                    for item in section(entry, number, inner):
                        out.write(separator + json.dumps(item, separators=(",", ":")).encode())
                        separator = b",\n"
                out.write(b"\n]")
            rest = dict(self.rest)
            if self.segments is not None:
                rest["categories"] = categories(union.words, self.category)
            for key, value in rest.items():
                out.write(b',\n"%s": %s' % (key.encode(), json.dumps(value).encode()))
            out.write(_END)


def images_of(entry: dict[str, Any], number: int, numbers: Iterator[int]) -> Iterable[dict[str, Any]]:
    """The section "images" of COCO. Raises one of DAMAGE where the entry is of another form."""
    height, width = entry["size"]
    name = entry["name"]
    if not isinstance(name, str) or not type(height) is type(width) is int or min(height, width) < 1:
        raise ValueError(f"expected a name and a size, found {name!r} and {entry['size']!r}")
    yield {"id": number, "file_name": name, "height": height, "width": width}


class ListSink(Sink):
    """One line of a file that lists all pictures."""

    def __init__(
        self,
        listing: Listing,
        target: Target,
        entry: Callable[[Target, NDArray[np.int32], Names | None], dict[str, Any]],
    ) -> None:
        """`entry`: what is listed of a picture with these labels, and with words where it has them."""
        self.path = listing.path(target.folder)
        self._listing, self._target, self._entry = listing, target, entry

    @property
    def paths(self) -> tuple[Path, ...]:
        """None of a picture's own."""
        return ()

    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
    ) -> Any:
        """The line."""
        words = {} if names is None else {"words": names.words}
        entry = {"target": self._target.key, **words, **self._entry(self._target, labels, names)}
        return json.dumps(entry, separators=(",", ":")).encode() + b"\n"

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Add the line to the journal."""
        self._listing.add(self._target.folder, prepared)
        return self.path

    def close(self) -> None:
        """Nothing is left to do: the run assembles the file."""

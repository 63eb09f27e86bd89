"""What of an output folder is done: an index of which input was segmented by what, into which files."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from runtime.errors import DiffSegError
from runtime.files import DAMAGE
from runtime.frames.still import Still
from runtime.merge.threads import usable_cores
from runtime.outputs.journal import INDEX, Journal, entries, key_of, scan
from runtime.outputs.registry import listings
from runtime.outputs.sinks import Sink
from runtime.stream.contents import HashedStill, content_of
from runtime.stream.made import engine_of, how_made

if TYPE_CHECKING:
    from fractions import Fraction
    from pathlib import Path

    from runtime.frames.source import Source
    from runtime.outputs.target import Target
    from runtime.stages import Stages
    from runtime.stream.options import ClipOptions

MOST_AHEAD = 32  # inputs that are hashed before they are needed
_SHOWN_ONLY = ("show", "reconnect")  # options of clips that change no output


@dataclass(slots=True)
class Entry:
    """One input of this run. `content`: hash of its bytes, None where it cannot be read twice. `made`: what by.

    The content of a photograph is known once it is read, where nothing asks for it before.
    """

    target: Target
    content: str | None
    made: str


class Ledger:
    """The index of an output folder, `resume.jsonl`.

    A line before the outputs of an input are written makes what is known of them void, and a line after them says what
    they are. So what a killed run has left half-written, or two runs with different settings have both written, never
    counts. A run writes these lines if it has several inputs, or there is an index, or `resume` is asked for.
    """

    def __init__(
        self,
        folder: Path,
        stages: tuple[Stages, Stages],
        kinds: Sequence[str],
        options: ClipOptions,
        levels: tuple[float, ...] | None = None,
        *,
        resume: bool = False,
    ) -> None:
        """`stages`: of photographs, and of clips. `resume`: inputs that are done are to be skipped.

        Raises DiffSegError where the index is someone else's, or cannot be read.
        """
        self._folder, self._stages, self._kinds = folder, stages, tuple(kinds)
        self._options, self._levels = options, levels
        self._journal = Journal(folder / INDEX, "a run with --resume will do this input again")
        self._journal.begin()
        self.resume = resume
        self.active = bool(kinds) and (resume or self._journal.path.exists())
        self.is_new = resume and not self._journal.path.exists()
        self._reading = threading.Lock()
        self._done: dict[int, int] = {}
        self._listed: list[frozenset[int]] = []
        self._file: IO[bytes] | None = None
        self.again: Counter[str] = Counter()  # why inputs that were done before are done again
        if self.active and resume and self._journal.path.exists():
            self._journal.compact(lambda lines: sorted(lines.undisputed().values()))
            try:
                self._file = self._journal.path.open("rb")
            except OSError as error:
                raise DiffSegError(f"{self._journal.path}: cannot be read ({error.strerror})") from None
            self._done = scan(self._file).undisputed()
            self._listed = [listing.listed(folder) for listing in listings(kinds)]

    def close(self) -> None:
        """Let go of the index."""
        if self._file is not None:
            self._file.close()

    def hashed(self, sources: Iterable[Source]) -> Iterator[tuple[Source, str | None]]:
        """The sources in their order, each with the hash of its content; None without `resume`, or if it has none."""
        if not self.resume or not self.active:
            yield from ((source, None) for source in sources)
            return
        with ThreadPoolExecutor(min(4, usable_cores())) as pool:
            waiting: deque[tuple[Source, Future[str | None]]] = deque()
            try:
                for source in sources:
                    waiting.append((source, pool.submit(content_of, source)))
                    if len(waiting) >= MOST_AHEAD:
                        first, found = waiting.popleft()
                        yield first, found.result()
                for first, found in waiting:
                    yield first, found.result()
            finally:
                for _, found in waiting:
                    found.cancel()

    def entry(self, target: Target, content: str | None, *, clip: bool = False) -> Entry:
        """What this run makes of an input."""
        return Entry(target, content, self._clips if clip else self._photographs)

    def still(self, source: Source, entry: Entry) -> Still:
        """The photograph of an entry, to be read; the entry then has its hash."""
        if not self.active or self.resume:
            return Still(source)

        def found(content: str | None) -> None:
            entry.content = content

        return HashedStill(source, found)

    def is_done(self, entry: Entry) -> bool:
        """Whether all outputs are there, whole, and made of the same content by the same engine and settings."""
        if not self.resume:
            return False
        known = self._known(entry)
        if known is None:
            return False
        kinds = known["kinds"]
        if entry.content is None or known.get("input") != entry.content:
            reason = "changed since"
        elif known.get("made") != entry.made:
            reason = "by another engine or other settings"
        elif not set(self._kinds) <= set(kinds):
            reason = "not in all these kinds"
        elif not all(self._is_there(kinds[kind]) for kind in self._kinds):
            reason = "outputs are missing or have been changed"
        elif not self._is_listed(entry):
            reason = "not listed any more under its name"
        else:
            return True
        self.again[reason] += 1
        return False

    def begin(self, entry: Entry) -> None:
        """Say that the outputs of an input are about to be written."""
        if self.active:
            self._add(entry, {})

    def finish(self, entry: Entry, outputs: Iterable[tuple[str, Sink]]) -> None:
        """Say that the outputs of an input are whole: pairs of a kind and its sink."""
        if not self.active or entry.content is None:
            return
        kinds: dict[str, dict[str, list[int]]] = {}
        for kind, sink in outputs:
            there = {path.relative_to(self._folder).as_posix(): _extent(path) for path in sink.paths}
            kinds.setdefault(kind, {}).update(there)
        # A kind without a sink has its file from another one, as archive has that of labels.
        everything = {path: extent for one in kinds.values() for path, extent in one.items()}
        kinds = {kind: kinds.get(kind, everything) for kind in self._kinds}
        known = self._known(entry)
        if known and (known.get("input"), known.get("made")) == (entry.content, entry.made):
            # Another run made further kinds of the same. Two kinds may share a file, which is then this run's.
            ours = {path for one in kinds.values() for path in one}
            kinds = {kind: one for kind, one in known.get("kinds", {}).items() if not ours & set(one)} | kinds
        self._add(entry, {"kinds": kinds})

    def marks(self, entry: Entry, outputs: Iterable[tuple[str, Sink]]) -> tuple[Sink, Sink]:
        """Sinks of a photograph, to be written before its outputs and after them, which call `begin` and `finish`."""
        kept = list(outputs)
        return _Mark(lambda: self.begin(entry)), _Mark(lambda: self.finish(entry, kept))

    def _is_listed(self, entry: Entry) -> bool:
        """Whether a photograph is in the files that list all photographs."""
        return entry.made == self._clips or all(key_of(entry.target.key) in listed for listed in self._listed)

    def _known(self, entry: Entry) -> dict[str, Any] | None:
        offset = self._done.get(key_of(entry.target.key))
        if offset is None or self._file is None:
            return None
        try:
            with self._reading:
                (found,) = entries(self._file, [offset])
            kinds = found.get("kinds")
        except DAMAGE:  # changed meanwhile
            return None
        whole = isinstance(kinds, dict) and all(isinstance(one, dict) for one in kinds.values())
        return found if whole and found["target"] == entry.target.key else None

    def _is_there(self, outputs: Mapping[str, list[int]]) -> bool:
        if any(os.path.isabs(path) or ".." in path.split("/") for path in outputs):  # noqa: PTH117 - none of ours
            return False
        try:
            return all(_extent(self._folder / path) == extent for path, extent in outputs.items())
        except (OSError, ValueError):  # the latter for what cannot be a path
            return False

    def _add(self, entry: Entry, more: Mapping[str, object]) -> None:
        line = {"target": entry.target.key, "input": entry.content, "made": entry.made, **more}
        self._journal.add(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    @cached_property
    def _engine(self) -> dict[str, object]:
        return engine_of(self._stages[0])

    @cached_property
    def _photographs(self) -> str:
        return how_made(self._engine, self._stages[0], levels=self._levels)

    @cached_property
    def _clips(self) -> str:
        options = {field.name: getattr(self._options, field.name) for field in fields(self._options)}
        kept = {name: str(value) for name, value in options.items() if name not in _SHOWN_ONLY}
        return how_made(self._engine, self._stages[1], clips=kept)


class _Mark(Sink):
    """Writes nothing but a line of the index."""

    def __init__(self, mark: Any) -> None:
        self._mark = mark

    @property
    def paths(self) -> tuple[Path, ...]:
        """It has no files."""
        return ()

    def prepare(self, *given: object, **more: object) -> None:
        """Nothing."""

    def write(self, number: int, time: Fraction, prepared: Any) -> None:
        """Write the line."""
        self._mark()

    def close(self) -> None:
        """Nothing is left to do."""


def _extent(path: Path) -> list[int]:
    """How much there is: the bytes of a file; the files of a folder, and their bytes."""
    if not path.is_dir():
        return [path.stat().st_size]
    sizes = [
        os.stat(os.path.join(folder, name)).st_size  # noqa: PTH116, PTH118 - there may be many
        for folder, _, names in os.walk(path)
        for name in names
        if not name.startswith(".")
    ]
    return [len(sizes), sum(sizes)]

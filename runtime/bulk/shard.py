"""One shard: its images are decoded, segmented and written, and its file is moved into place."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from runtime.bulk.batch import SegmentBatch, decode
from runtime.bulk.finished import read_about, shard_name
from runtime.bulk.manifest import Finished, Job
from runtime.bulk.places import Place
from runtime.bulk.reading import images_of
from runtime.bulk.rows import encode_shard
from runtime.errors import DiffSegError
from runtime.outputs.failures import explain

if TYPE_CHECKING:
    from runtime.outputs.listing import Listing
    from runtime.stream.frame import Place as Written

PIECE, LARGE_PIECE = 16, 4  # images that are decoded together: at the engine's size, or whole
TOLD = 3  # errors of a shard that are told one by one
FILES = "files"  # below the output: what --save writes

Pieces = Iterator[list[dict[str, Any]]]
# Lists of rows with `bytes` or `path` → the same, decoded, in order: in this thread, or in tasks of their own.
Decoded = Callable[[Pieces, "tuple[int, int] | None", "int | None"], Pieces]


def decode_here(pieces: Pieces, size: tuple[int, int] | None, most: int | None) -> Pieces:
    """Decode in this thread."""
    return (decode(piece, size, most) for piece in pieces)


def do_shard(
    job: Job, output: Place, shard: int, segment: SegmentBatch, decoded: Decoded = decode_here, most: int | None = None
) -> dict[str, Any]:
    """Segment the rows of a shard and write its file; nothing is done where that is there already.

    `most`: pixels that a picture may have. Returns `shard`, `rows`, `errors`, `segments`, `seconds`, `told`: the first
    errors. Raises DiffSegError where the job cannot go on: a table is gone, the disk is full, or this machine's engine
    is not the job's.
    """
    begun = time.perf_counter()
    place = output / shard_name(shard)
    before = reported_before(job, place, shard, begun)
    if before is not None:
        return before
    check_made(job, segment)
    with _files(job, output, shard) as files:
        images = images_of(job, shard)
        whole = files is not None and files.needs_frames
        size = None if whole else segment.size
        pieces = decoded(_pieces(images, PIECE if size is not None else LARGE_PIECE), size, most)
        rows = list(segment.rows((row for piece in pieces for row in piece), None if files is None else files.places))
        if files is not None:
            files.finish()
    return write_shard(job, output, shard, rows, begun)


def write_shard(job: Job, output: Place, shard: int, rows: list[dict[str, Any]], begun: float) -> dict[str, Any]:
    """Write a shard's file; see `do_shard`."""
    finished, failed = count_rows(rows)
    about = job.about(shard, finished) | {"worker": f"{platform.node()}:{os.getpid()}"}
    (output / shard_name(shard)).write(encode_shard(rows, about))
    return report_of(shard, finished._asdict(), begun, failed[:TOLD])


def count_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[Finished, list[str]]:
    """What rows are counted as, and their errors."""
    failed = [str(row["error"]) for row in rows if row["error"] is not None]
    return Finished(len(rows), len(failed), sum(row["count"] or 0 for row in rows)), failed


def reported_before(job: Job, place: Place, shard: int, begun: float) -> dict[str, Any] | None:
    """The report of a file that is there already: its worker was killed before it could report. None: it is not."""
    before = read_about(place) if place.exists() else None
    return None if before is None or before.get("job") != job.key else report_of(shard, before, begun, [])


def report_of(shard: int, found: Mapping[str, Any], begun: float, told: list[str]) -> dict[str, Any]:
    """What `do_shard` returns; `found` has its counts."""
    counts = {name: found[name] for name in Finished._fields}
    return {"shard": shard, **counts, "seconds": time.perf_counter() - begun, "told": told}


def check_made(job: Job, segment: SegmentBatch) -> None:
    """Raise DiffSegError where a worker's engine or settings are not the job's."""
    if (segment.engine, segment.made) == (job.engine, job.settings):
        return
    found = segment.settings
    raise DiffSegError(
        f"a worker's engine or settings are not the job's: expected settings {job.settings}, found {segment.made} "
        f"({found.get('backend')}, {found.get('device')}, version {found.get('version')}); give all workers the same "
        "machine, packages and engine file"
    )


def _pieces(rows: Iterable[dict[str, Any]], length: int) -> Pieces:
    rows = iter(rows)
    while piece := list(islice(rows, length)):
        yield piece


@contextlib.contextmanager
def _files(job: Job, output: Place, shard: int) -> Iterator[_Files | None]:
    """Where the further outputs of a shard go, until they are whole; None without such outputs."""
    if not job.save:
        yield None
        return
    files = _Files(job, output / FILES, shard)
    try:
        yield files
    finally:
        files.drop()


class _Files:
    """The further outputs of a shard: written into a folder of this machine, which then takes its place at once."""

    def __init__(self, job: Job, folder: Place, shard: int) -> None:
        from runtime.outputs.registry import listings, needing_frame

        self._job, self._place = job, folder / f"shard-{shard:07d}"
        self.needs_frames = bool(needing_frame(job.save))
        self._used: set[str] = set()
        try:
            if folder.is_local:
                Path(folder.path).mkdir(parents=True, exist_ok=True)
                for left in Path(folder.path).glob(f".shard-{shard:07d}.*"):
                    shutil.rmtree(left, ignore_errors=True)
                self._part = Path(tempfile.mkdtemp(prefix=f".shard-{shard:07d}.", dir=folder.path))
                self._part.chmod(0o755)
            else:
                self._part = Path(tempfile.mkdtemp(prefix="diffseg-"))
        except OSError as error:
            raise explain(Path(folder.path), error) from None
        self._listings: list[Listing] = listings(job.save)
        for listing in self._listings:
            listing.begin(self._part)

    def places(self, row: Any) -> list[Written]:
        """Where the outputs of a row go."""
        from runtime.outputs.registry import picture_sinks
        from runtime.outputs.target import Target
        from runtime.stream.frame import Place as Written

        name = _below(str(row["id"]))
        stem = str(PurePosixPath(name).with_suffix(""))
        chosen = next(
            text
            for text in (stem, name, *(f"{name}.{number}" for number in range(2, len(self._used) + 3)))
            if text.casefold() not in self._used
        )
        self._used.add(chosen.casefold())
        target = Target(self._part / chosen, self._part, name, {"settings": self._job.settings})
        return [Written(kind, sink) for kind, sink in picture_sinks(self._job.save, target).items()]

    def finish(self) -> None:
        """Move all into place. Raises DiffSegError where that is impossible."""
        for listing in self._listings:
            listing.finish(self._part)
        try:
            if self._place.is_local:
                if Path(self._place.path).exists():  # of an attempt that was killed before its shard was written
                    shutil.rmtree(self._place.path)
                os.replace(self._part, self._place.path)
            else:
                from pyarrow import fs

                fs.copy_files(
                    str(self._part), self._place.path, destination_filesystem=self._place.system, use_threads=True
                )
        except Exception as error:
            raise self._place.failed(error, "written") from None

    def drop(self) -> None:
        """Remove what is left of the temporary folder."""
        shutil.rmtree(self._part, ignore_errors=True)


def _below(text: str) -> str:
    """A path below a folder, from an id of any kind."""
    parts = [part for part in text.replace("\\", "/").split("://")[-1].split("/") if part not in ("", ".", "..")]
    return "/".join(part.replace("\0", "_").lstrip(".") or "_" for part in parts) or "_"

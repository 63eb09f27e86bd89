"""The manifest of a job: which rows there are, which shard has which, and what is finished.

It is written before the first image is read. A shard is a slice of its rows, `shard_rows` long, so that the same shard
has the same rows in every run. A shard's file appears when it is whole; then it is never written again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from runtime import __version__
from runtime.bulk.inputs import PARQUET, PICTURES, Columns, Entry, count_rows, readable
from runtime.bulk.places import Place
from runtime.bulk.unique import Unique
from runtime.errors import DiffSegError
from runtime.files import DAMAGE, OWN_JSON

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FOLDER = "_diffseg"  # below the output: what is not the data
JOB = f"{FOLDER}/job.json"
TABLE_ROWS = 1_000_000  # of a file of the manifest
GROUP_ROWS = 2000  # of a row group in it, which is read as a whole
PER_WORKER = 8  # shards, where nobody says how many rows one has
LEAST_ROWS, MOST_ROWS = 16, 1000  # of a shard, likewise


class Finished(NamedTuple):
    """A shard that is whole: its rows, those of them with an error, and segments."""

    rows: int
    errors: int
    segments: int


@dataclass(frozen=True, slots=True)
class Job:
    """What a job does. Everything that changes its output is in its `key`.

    Attributes:
        asked: INPUT and the options that choose what is read, as given.
        kind: of the input (`runtime.bulk.inputs`).
        tables: (path or URI, rows) of the Parquet files that have the rows, in their order.
        columns: which of their columns are read.
        seals: of the tables, where they are the user's own (`runtime.bulk.places.seal_of`).
        shard_rows: rows of a shard; the last one may have fewer.
        save: further kinds of output. `settings`: of `SegmentBatch`. `engine`: hash of its content.
        clips: rows of a clip between cuts, and frames that two parts have in common; None for pictures.
    """

    asked: dict[str, Any]
    kind: str
    tables: tuple[tuple[str, int], ...]
    columns: Columns
    shard_rows: int
    engine: str = ""
    settings: str = ""
    save: tuple[str, ...] = ()
    clips: tuple[int, int] | None = None
    made: dict[str, Any] = field(default_factory=dict, compare=False)
    seals: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Of all tables: images, or tar archives, or parts of clips."""
        return sum(count for _, count in self.tables)

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.rows // self.shard_rows)

    @property
    def images(self) -> int | None:
        """How many there are; None where only reading the archives or clips tells."""
        return self.rows if self.kind in (PICTURES, PARQUET) else None

    @property
    def key(self) -> str:
        """A hash of all of it but `made`."""
        text = json.dumps({**asdict(self), "made": None}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def slice(self, shard: int) -> range:
        """The numbers of a shard's rows."""
        start = shard * self.shard_rows
        return range(start, min(start + self.shard_rows, self.rows))

    def about(self, shard: int, finished: Finished) -> dict[str, Any]:
        """What a shard's file says of itself."""
        settings = {"engine": self.engine, "settings": self.settings, "version": __version__}
        return {"job": self.key, "shard": shard, **finished._asdict(), **settings}

    def write(self, output: Place) -> None:
        """Write it, as the last of the manifest."""
        found = OWN_JSON | {"job": self.key, "version": __version__, "rows": self.rows, "shards": self.shards}
        (output / JOB).write(json.dumps({**found, **asdict(self)}, indent=1).encode() + b"\n")


@contextlib.contextmanager
def alone(output: Place) -> Iterator[None]:
    """In the body no other program works on an output; the system ends that with the process. Of stores none knows.

    Raises DiffSegError where one does.
    """
    if fcntl is None or not output.is_local:
        yield
        return
    with open(f"{output.path}/{FOLDER}/.lock", "wb") as file:  # noqa: PTH123 - a path of pyarrow
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DiffSegError(
                f"--output {output.name}: another diffseg bulk works on it; wait for its end, or choose another one"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


def read_job(output: Place) -> Job | None:
    """The job of an output folder; None where there is no manifest. Raises DiffSegError where it is damaged."""
    place = output / JOB
    if not place.exists():
        return None
    try:
        found = json.loads(place.read())
        clips = found["clips"]
        if not isinstance(found["asked"], dict) or not isinstance(found["made"], dict):
            raise ValueError
        return Job(
            asked=found["asked"],
            kind=found["kind"],
            tables=tuple((str(text), int(rows)) for text, rows in found["tables"]),
            columns=Columns(**found["columns"]),
            shard_rows=int(found["shard_rows"]),
            engine=found["engine"],
            settings=found["settings"],
            save=tuple(found["save"]),
            clips=None if clips is None else (int(clips[0]), int(clips[1])),
            made=found["made"],
            seals=tuple(found["seals"]),
        )
    except DAMAGE:
        raise DiffSegError(
            f"{place.name}: expected the manifest of a job, found a damaged file; choose another --output"
        ) from None


def check_same(old: Job, asked: dict[str, Any], save: Sequence[str], output: Place) -> None:
    """Raise DiffSegError where a folder's job is about other inputs or outputs than this run."""
    for name in sorted({*old.asked, *asked}):
        if old.asked.get(name) != asked.get(name):
            raise DiffSegError(
                f"--output {output.name}: has the job of {name} {old.asked.get(name)!r}, found {asked.get(name)!r}; "
                "choose another --output for another job"
            )
    if tuple(save) != old.save:
        raise DiffSegError(
            f"--output {output.name}: has a job with --save {','.join(old.save) or 'none'}, found "
            f"{','.join(save) or 'none'}; choose another --output for another job"
        )


def check_settings(old: Job, engine: str, settings: str, made: dict[str, Any], output: Place) -> None:
    """Raise DiffSegError where a folder's job has another engine or other settings than this run."""
    if (old.engine, old.settings) == (engine, settings):
        return
    differ = [
        f"{name} {old.made.get(name)!r}, found {made.get(name)!r}"
        for name in sorted({*old.made, *made} - {"source"})
        if old.made.get(name) != made.get(name)
        and not (name == "engine" and old.engine == engine and len(str(made.get(name))) != 64)
    ]
    raise DiffSegError(
        f"--output {output.name}: has a job with {'; '.join(differ) or 'other settings'}; give the same again to "
        "continue it, or choose another --output to start anew"
    )


def list_rows(output: Place, kind: str, entries: Iterable[Entry], given: str) -> tuple[tuple[str, int], ...]:
    """Write the tables of a job whose input is files: columns id and path. Memory does not grow with them.

    Raises DiffSegError where an id comes twice.
    """
    with Unique() as unique:

        def noted() -> Iterator[dict[str, Any]]:
            for entry in entries:
                unique.add(entry.id)
                yield {"id": entry.id, "path": readable(entry.place.text)}

        tables = write_tables(output, noted())
        unique.check(lambda: _ids(tables, "id"), given)
    if not tables:
        raise DiffSegError(f"{given}: expected {kind}, found none")
    return tables


def write_tables(
    output: Place, rows: Iterable[dict[str, Any]], name: str = "inputs", more: Mapping[str, str] = MappingProxyType({})
) -> tuple[tuple[str, int], ...]:
    """Write rows with `id` and `path` into files of the manifest; (path, rows) of each.

    `name`: of the files. `more`: further columns, and their Arrow types. Raises DiffSegError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"id": "string", "path": "string", **more}.items())
    tables: list[tuple[str, int]] = []
    writer: Any = None
    waiting: list[dict[str, Any]] = []
    place = output

    def flush() -> None:
        nonlocal writer, place
        if not waiting:
            return
        table = pa.Table.from_pylist(waiting, schema=schema)
        if writer is None:
            place = output / f"{FOLDER}/{name}-{len(tables):05d}.parquet"
            if place.is_local:
                place.system.create_dir(place.path.rpartition("/")[0], recursive=True)
            writer = pq.ParquetWriter(place.path, table.schema, filesystem=place.system, compression="zstd")
            tables.append((place.text, 0))
        writer.write_table(table)
        tables[-1] = (place.text, tables[-1][1] + len(waiting))
        waiting.clear()
        if tables[-1][1] >= TABLE_ROWS:
            writer.close()
            writer = None

    try:
        for row in rows:
            waiting.append(row)
            if len(waiting) >= GROUP_ROWS:
                flush()
        flush()
        if writer is not None:
            writer.close()
    except DiffSegError:
        raise
    except Exception as error:
        raise place.failed(error, "written") from None
    return tuple(tables)


def parquet_rows(
    entries: Iterable[Entry], image: str | None, name: str | None, given: str
) -> tuple[tuple[tuple[str, int], ...], Columns, tuple[str, ...]]:
    """The tables of a job whose input is Parquet files, these files; the columns; the seals.

    Reads their footers, and their ids, if any. Raises DiffSegError where they have no images, no
    rows, or an id that comes twice.
    """
    tables, columns, seals = count_rows((entry.place for entry in entries), image, name)
    if not sum(rows for _, rows in tables):
        raise DiffSegError(f"{given}: expected rows with images, found Parquet files without rows")
    if columns.id is not None:
        with Unique() as unique:
            for identity in _ids(tables, columns.id):
                unique.add(identity)
            unique.check(lambda: _ids(tables, str(columns.id)), given)
    return tuple(tables), columns, tuple(seals)


def choose_rows(images: int, workers: int) -> int:
    """Rows of a shard: so many that each worker gets several shards."""
    return max(LEAST_ROWS, min(MOST_ROWS, -(-images // (PER_WORKER * workers))))


def _ids(tables: Iterable[tuple[str, int]], column: str) -> Iterator[str]:
    """A column of all tables, as texts."""
    import pyarrow.parquet as pq

    for text, _ in tables:
        place = Place.of(text)
        with place.reading(), place.system.open_input_file(place.path) as file:
            for batch in pq.ParquetFile(file).iter_batches(GROUP_ROWS, columns=[column], use_threads=False):
                for value in batch.column(0).to_pylist():
                    if value is None:
                        raise DiffSegError(f"{place.name}: expected an id in each row, found an empty {column}")
                    yield str(value)

"""Reading a job's output back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from runtime.bulk.finished import shard_files
from runtime.bulk.places import Place
from runtime.bulk.rows import COLUMNS, as_result
from runtime.errors import DiffSegError
from runtime.result import Result

AT_ONCE = 64  # rows


def read(uri: str, *, errors: Literal["skip", "give", "raise"] = "skip") -> Iterator[tuple[str, Result | DiffSegError]]:
    """The ids and `Result`s of a job's output, in the order of its input; few are in memory at a time.

        for name, result in read("s3://bucket/segments"):
            print(name, result.count, result.labels.shape)

    A frame's id is CLIP#FRAME, and its labels are identities. Words are in the columns `names` and `scores` alone.

    Args:
        uri: the output's folder, or one of its shards.
        errors: what becomes of rows with an error: "skip" leaves them out, "give" gives a DiffSegError in the
            result's place, "raise" raises it.

    Raises:
        DiffSegError: where the output cannot be read or has no shards, or pycocotools is missing.
    """
    if errors not in ("skip", "give", "raise"):
        raise DiffSegError(f"errors: expected 'skip', 'give' or 'raise', found {errors!r}")
    for row in read_rows(uri):
        result = as_result(row)
        if isinstance(result, Result) or errors == "give":
            yield row["id"], result
        elif errors == "raise":
            raise result


def read_rows(uri: str) -> Iterator[dict[str, Any]]:
    """The rows of a job's output as dicts, with the columns of README.md. Raises DiffSegError as `read` does."""
    import pyarrow.parquet as pq

    place = Place.of(uri)
    if not place.exists():
        raise DiffSegError(f"{place.name}: no such file or folder; expected the output of diffseg bulk")
    places = shard_files(place) if place.is_folder() else [place]
    if not places:
        raise DiffSegError(f"{place.name}: expected shards (shard-0000000.parquet), found none")
    for shard in places:
        with shard.reading(), shard.system.open_input_file(shard.path) as file:
            opened = pq.ParquetFile(file)
            missing = [name for name, _, _ in COLUMNS if name not in opened.schema_arrow.names]
            if missing:
                raise DiffSegError(f"{shard.name}: expected a shard of diffseg bulk, found no column {missing[0]}")
            for batch in opened.iter_batches(AT_ONCE):
                yield from batch.to_pylist()

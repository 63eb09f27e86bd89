"""The shards of a job that are finished."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from runtime.bulk.manifest import Finished, Job
from runtime.bulk.places import Place
from runtime.bulk.rows import about_shard
from runtime.errors import DiffSegError


def shard_name(shard: int) -> str:
    """The file of a shard below the output."""
    return f"shard-{shard:07d}.parquet"


def finished_shards(job: Job, output: Place) -> dict[int, Finished]:
    """The shards that are whole, by their numbers.

    Raises DiffSegError where a file of that name is of another job, or is damaged.
    """
    names = [place for place in shard_files(output) if _number(place) is not None]
    found: dict[int, Finished] = {}
    with ThreadPoolExecutor(16) as pool:
        for place, about in zip(names, pool.map(read_about, names), strict=True):
            number = _number(place)
            if about is None or about.get("job") != job.key or about.get("shard") != number or number is None:
                whose = "a file that is no shard" if about is None else f"settings {about.get('settings')}"
                raise DiffSegError(
                    f"{place.name}: expected a shard of this job (settings {job.settings}), found {whose} of another "
                    "one; move it away, or choose another --output"
                )
            found[number] = Finished(about["rows"], about["errors"], about["segments"])
    return found


def shard_files(output: Place) -> list[Place]:
    """The files that are called shards, in their order."""
    from pyarrow import fs

    with output.reading():
        infos = output.system.get_file_info(fs.FileSelector(output.path, allow_not_found=True))
    names = sorted(info.base_name for info in infos if info.type == fs.FileType.File)
    return [output / name for name in names if name.startswith("shard-") and name.endswith(".parquet")]


def read_about(place: Place) -> dict[str, Any] | None:
    """What a shard's file says of itself; None where it is not a shard, or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with place.reading(), place.system.open_input_file(place.path) as file:
            return about_shard(pq.ParquetFile(file).schema_arrow.metadata)
    except DiffSegError as error:
        if isinstance(error.__context__, pa.ArrowInvalid):
            return None
        raise


def _number(place: Place) -> int | None:
    text = place.path.rpartition("/")[2].removeprefix("shard-").removesuffix(".parquet")
    return int(text) if text.isdecimal() else None

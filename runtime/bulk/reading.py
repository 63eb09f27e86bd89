"""The rows of a shard, read from the tables of its job: paths, encoded pictures, members of archives."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from runtime.bulk.inputs import PICTURES, TAR, kind_of
from runtime.bulk.places import Place, seal_of
from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from runtime.bulk.manifest import Job

AHEAD = 8 << 20  # bytes of an archive that are read together
MOST_MEMBER = 1 << 30  # bytes of a picture in an archive: a sparse one says any number, in a few bytes
_ENDS = ("EOFHeaderError", "EmptyHeaderError")  # of tarfile, which has no types for them
AT_ONCE = 32  # rows of a table that are read together: encoded pictures among them


def images_of(job: Job, shard: int) -> Iterator[dict[str, Any]]:
    """The images of a shard: rows with `id`, `path` and perhaps `bytes`, or with an `error`.

    Raises DiffSegError where a table cannot be read, or is not as the manifest has it.
    """
    for row in table_rows(job, job.slice(shard)):
        if job.kind == TAR:
            yield from _members(row)
        else:
            yield row


def table_rows(job: Job, numbers: range) -> Iterator[dict[str, Any]]:
    """Some rows of a job's tables, by their numbers."""
    start = 0
    for (text, count), seal in zip_longest(job.tables, job.seals):
        inside = range(max(numbers.start - start, 0), min(numbers.stop - start, count))
        if inside:
            yield from _of_table(job, text, count, inside, seal)
        start += count


def _of_table(job: Job, text: str, count: int, numbers: range, seal: str | None) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    place = Place.of(text)
    columns = job.columns
    file_name = _last(text)
    if sum(_last(other) == file_name for other, _ in job.tables) > 1:
        file_name = place.name  # part-0.parquet of each folder
    names = [name for name in (columns.id, columns.image) if name is not None]
    with place.reading(), place.system.open_input_file(place.path) as file:
        is_same = seal is None or seal == seal_of(file)
        opened = pq.ParquetFile(file)
        found = opened.metadata.num_rows
        if found != count or not is_same:
            raise DiffSegError(
                f"{place.name}: expected {count} rows as the job's manifest has them, found "
                f"{found if found != count else 'others'}; it was changed: choose another --output for a new job"
            )
        more = [name for name in opened.schema_arrow.names if job.clips is not None and name not in names]
        start = 0
        for group in range(opened.metadata.num_row_groups):
            stop = start + opened.metadata.row_group(group).num_rows
            if start < numbers.stop and stop > numbers.start:
                at = start
                for batch in opened.iter_batches(AT_ONCE, row_groups=[group], columns=[*names, *more]):
                    first, last = max(numbers.start - at, 0), min(numbers.stop - at, batch.num_rows)
                    if first < last:
                        part = batch.slice(first, last - first).to_pylist()
                        yield from (
                            _row(job, place, file_name, at + first + index, row) for index, row in enumerate(part)
                        )
                    at += batch.num_rows
            start = stop


def _last(text: str) -> str:
    """The last part of a path or URI."""
    return (text.partition("?")[0] if "://" in text else text).rpartition("/")[2]


def _row(job: Job, place: Place, file_name: str, number: int, row: dict[str, Any]) -> dict[str, Any]:
    columns = job.columns
    value = row[columns.image]
    if columns.inside is not None:
        value = None if value is None else value[columns.inside]
    identity = f"{file_name}#{number}" if columns.id is None else str(row[columns.id])
    if job.clips is not None:
        return {**row, "id": identity, "path": value}
    path = value if columns.is_path else None
    if columns.is_path and path is not None and "://" not in path and not path.startswith("/"):
        # A path in a table is relative to the table's folder.
        path = place.at(f"{place.path.rpartition('/')[0]}/{path}").text
    found: dict[str, Any] = {"id": identity, "path": path if columns.is_path else place.text}
    if value is None:
        return found | {"error": f"{identity}: expected a picture in {columns.image}, found nothing"}
    return found if columns.is_path else found | {"bytes": value}


def _members(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pictures of a tar archive, in their order, read from its beginning to its end."""
    place = Place.of(row["path"])
    seen: set[str] = set()
    count = 0
    try:
        stream = {"compression": None, "buffer_size": AHEAD}  # a store is asked once for so many bytes
        with place.reading(), place.system.open_input_stream(place.path, **stream) as file:
            try:
                with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as archive:
                    for member in archive:
                        if not member.isfile() or kind_of(member.name) != PICTURES or _hidden(member.name):
                            continue
                        identity = f"{row['id']}/{member.name}"
                        found = {"id": identity, "path": place.text}
                        count += 1
                        if member.name in seen:
                            number = f"{identity}#{count - 1}"
                            yield found | {"id": number, "error": f"{identity}: is in the archive twice"}
                            continue
                        seen.add(member.name)
                        if member.size > MOST_MEMBER:
                            what = f"expected a picture of at most {MOST_MEMBER >> 20} MB, found {member.size >> 20} MB"
                            yield found | {"error": f"{identity}: {what}"}
                            continue
                        extracted = archive.extractfile(member)
                        assert extracted is not None
                        yield found | {"bytes": extracted.read()}
            except (tarfile.TarError, EOFError) as error:
                raise DiffSegError(
                    f"{place.name}: expected a whole tar archive, found one that is damaged or cut short ({error})"
                ) from None
    except DiffSegError as error:
        yield {"id": f"{row['id']}#{count}", "path": place.text, "error": str(error)}


class _Header(tarfile.TarInfo):
    """The head of a member. tarfile takes a damaged one for the archive's end, and what follows would be lost."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            # An archive ends with empty blocks; where these are missing, at the end of the file.
            if type(error).__name__ in _ENDS:
                raise
            raise tarfile.ReadError(str(error)) from None


def _hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")

"""Clips in bulk: cut into parts that are segmented at the same time, and joined again by the tracker's own matching.

A clip is cut where its scene changes, by the tracker's own measure, after which all identities are new in any case; and
where a scene is longer than asked for. Such a later part begins some frames early, which the part before has, too:
there its tracker settles, and there identities are matched (`runtime.track.match`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from runtime.bulk.cluster import in_tasks, run_shards
from runtime.bulk.cutting import Part, frames_of, opened
from runtime.bulk.finished import shard_name
from runtime.bulk.manifest import FOLDER, Job
from runtime.bulk.places import Place
from runtime.bulk.reader import read_rows
from runtime.bulk.reading import table_rows
from runtime.bulk.rows import as_result, encode_shard, result_row
from runtime.bulk.shard import check_made, count_rows, report_of, reported_before, write_shard
from runtime.errors import DiffSegError, NoMoreSpace, as_one_line

if TYPE_CHECKING:
    from runtime.bulk.batch import SegmentBatch
    from runtime.bulk.cluster import Resources
    from runtime.result import Result


def run_clips(
    job: Job, output: Place, left: Sequence[int], resources: Resources, open_batch: Any, most_pixels: int | None
) -> Iterator[dict[str, Any]]:
    """Reports as of `run_shards`: of each part when it is segmented, and of those that fail when they are joined."""
    parts = {shard: Part(**row) for shard, row in enumerate(table_rows(job, range(job.rows)))}
    yield from run_shards(left, resources, output.text, open_batch, do_part, most=most_pixels)
    of_clip: dict[str, list[int]] = {}
    for shard, part in parts.items():
        of_clip.setdefault(part.id, []).append(shard)
    wanted = set(left)
    clips = [shards for shards in of_clip.values() if wanted & set(shards)]
    for shards, failed in zip(
        clips, in_tasks(join_clip, [(output.text, one) for one in clips], resources), strict=True
    ):
        if failed is not None:
            yield {"shard": shards[0], "failed": failed["failed"], "full": failed["full"]}


def do_part(
    job: Job, output: Place, shard: int, segment: SegmentBatch, decoded: object = None, most: int | None = None
) -> dict[str, Any]:
    """Segment a part of a clip into a file of its own, from which `join_clip` makes the shard; see `do_shard`."""
    from runtime.frames.limits import set_most_pixels

    begun = time.perf_counter()
    place = _part_file(output, shard)
    before = reported_before(job, place, shard, begun)
    if before is not None:
        return before
    check_made(job, segment)
    if most is not None:
        set_most_pixels(most)
    (row,) = table_rows(job, job.slice(shard))
    part = Part(**row)
    try:
        rows = list(_segmented(segment, part)) if part.error is None else [_failed(segment, part, part.error)]
    except (ModuleNotFoundError, NoMoreSpace):
        raise
    except Exception as error:
        rows = [_failed(segment, part, str(as_one_line(error, part.id)))]
    own = [row for row in rows if row["frame"] is None or row["frame"] >= part.first]
    finished, failed = count_rows(own)
    place.write(encode_shard(rows, {"job": job.key, "shard": shard, **finished._asdict()}))
    return report_of(shard, finished._asdict(), begun, failed[:1])


def join_clip(output: str, shards: Sequence[int]) -> dict[str, Any] | None:
    """Make the shards of a clip from its parts, with identities that go through. None, or why it failed.

    Shards that are there already are not written again.
    """
    from runtime.bulk.manifest import read_job
    from runtime.track.match import join_identities

    folder = Place.of(output)
    job = read_job(folder)
    assert job is not None
    try:
        missing = [shard for shard in shards if not _part_file(folder, shard).exists()]
        if missing:
            raise DiffSegError(f"shard {missing[0]}: its part of the clip was not segmented; start again")
        given = 0  # identities so far
        tail: list[dict[str, Any]] = []  # the last frames, with the clip's identities
        for shard in shards:
            begun = time.perf_counter()
            (found,) = table_rows(job, job.slice(shard))
            part = Part(**found)
            rows = list(read_rows(_part_file(folder, shard).text))
            shared = [row for row in rows if row["frame"] is not None and row["frame"] < part.first]
            own = [row for row in rows if row["frame"] is None or row["frame"] >= part.first]
            known: dict[int, int] = {}
            if shared and tail:
                earlier = {row["frame"]: row for row in tail}
                both = [row for row in shared if row["frame"] in earlier]
                known = join_identities([_result(earlier[row["frame"]]) for row in both], list(map(_result, both)))
            for row in own:
                for label in row["labels"] or ():
                    if label not in known:
                        known[label] = given
                        given += 1
                if row["labels"] is not None:
                    row["labels"] = [known[label] for label in row["labels"]]
            tail = [row for row in own if row["error"] is None][-_overlap(job) :]
            if not (folder / shard_name(shard)).exists():
                write_shard(job, folder, shard, own, begun)
        for shard in shards:
            place = _part_file(folder, shard)
            with place.reading():
                place.system.delete_file(place.path)
    except Exception as error:
        return {"failed": str(as_one_line(error, "joining a clip")), "full": isinstance(error, NoMoreSpace)}
    return None


def _segmented(segment: SegmentBatch, part: Part) -> Iterator[dict[str, Any]]:
    """The rows of a part's frames; labels are identities of the part."""
    from runtime.stream.continuity import Continuity
    from runtime.stream.frame import Job as Frame
    from runtime.stream.job import Stream

    stages = segment.segmenter.stages
    begin = Fraction(part.begin)
    with opened(part.path, begin) as clip:

        def frames() -> Iterator[Frame]:
            for number, frame in enumerate(frames_of(clip, begin, part.end), part.start):
                yield Frame(frame=frame.image, number=number, time=frame.time)

        pipeline = Stream(stages, Continuity(stages)).pipeline(frames(), writes=False)
        number = part.start - 1
        try:
            for job in pipeline:
                assert job.result is not None
                number = job.number
                row = segment.empty({"id": f"{part.id}#{number}", "path": part.path})
                yield row | result_row(job.result) | {"frame": number, "time": float(job.time)}
        finally:
            pipeline.abandon()
    if number != part.stop - 1:
        raise DiffSegError(
            f"{part.id}: expected frames {part.start} to {part.stop - 1}, found them up to {number}; it was changed, "
            "or cannot be entered in its middle: use --cut 0"
        )


def _failed(segment: SegmentBatch, part: Part, error: str) -> dict[str, Any]:
    name = part.id if part.error is not None else f"{part.id}#{part.first}"
    return segment.empty({"id": name, "path": part.path}) | {"error": error}


def _result(row: dict[str, Any]) -> Result:
    found = as_result(row)
    if isinstance(found, DiffSegError):
        raise found
    return found


def _overlap(job: Job) -> int:
    assert job.clips is not None
    return job.clips[1]


def _part_file(output: Place, shard: int) -> Place:
    return output / f"{FOLDER}/parts/part-{shard:07d}.parquet"

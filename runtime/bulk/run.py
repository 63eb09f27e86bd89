"""A job from its inputs to its summary."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runtime.bulk.cluster import Open, Resources, cluster, describe, run_shards
from runtime.bulk.finished import finished_shards
from runtime.bulk.inputs import CLIPS, PARQUET, TAR, Columns, find
from runtime.bulk.manifest import (
    FOLDER,
    Job,
    alone,
    check_same,
    check_settings,
    choose_rows,
    list_rows,
    parquet_rows,
    read_job,
)
from runtime.bulk.places import Place, hidden, is_absolute
from runtime.bulk.progress import Progress
from runtime.bulk.shard import do_shard
from runtime.errors import DiffSegError

SUMMARY = "summary.json"
MOST_FAILED = 10  # shards: more say that something is wrong with all of them
Say = Callable[[str], None]
Work = Callable[..., dict[str, Any]]
Reports = Generator[dict[str, Any], None, None]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        inputs: folders, globs, lists, files and URIs.
        output: a folder or URI.
        save: further kinds of output.
        image_column, id_column: of Parquet files; None: by their names and types.
        clips: frames between cuts, and frames that two parts of a clip have in common; None: pictures are meant.
        shard_rows: rows of a shard; None: by the number of images and workers.
        most_errors: rows with an error after which the job stops; None: never.
        most_pixels: that a picture may have.
    """

    inputs: Sequence[str]
    output: str
    save: tuple[str, ...] = ()
    image_column: str | None = None
    id_column: str | None = None
    clips: tuple[int, int] | None = None
    shard_rows: int | None = None
    most_errors: int | None = None
    most_pixels: int | None = None
    resources: Resources = field(default_factory=Resources)

    @property
    def asked(self) -> dict[str, Any]:
        """What a job must be asked again to go on."""
        return {
            "INPUT": list(self.inputs),
            "the working folder": None if all(map(is_absolute, self.inputs)) else str(Path.cwd()),
            "--image-column": self.image_column,
            "--id-column": self.id_column,
            "--clips": None if self.clips is None else list(self.clips),
        }


def run_job(request: Request, open_batch: Open, say: Say, work: Work = do_shard) -> dict[str, Any]:
    """Do a job, or what is left of it; its summary, which is also written as `summary.json` into the output.

    `open_batch`: opens a worker's engine. `say`: takes a line for people. `work`: what is done to a shard of pictures.
    Raises DiffSegError where it cannot begin. A job that stops early has `stopped`, the reason, in its summary.
    """
    output = Place.of(request.output)
    output.check_writable()
    with alone(output):
        return _run_alone(request, output, open_batch, say, work)


def _run_alone(request: Request, output: Place, open_batch: Open, say: Say, work: Work) -> dict[str, Any]:
    old = read_job(output)
    if old is not None:
        check_same(old, request.asked, request.save, output)
    job = old or plan(request, output)
    with cluster(request.resources, say):
        found = describe(request.resources, open_batch)
        if old is not None:
            check_settings(old, found["engine"], found["made"], found["settings"], output)
        else:
            if job.kind == CLIPS:
                from runtime.bulk.cutting import cut_all

                job = cut_all(job, output, request.resources, request.most_pixels, say)
            job = replace(job, engine=found["engine"], settings=found["made"], made=found["settings"])
            job.write(output)
        return _run(request, job, output, functools.partial(_reports, request, job, output, open_batch, work))


def plan(request: Request, output: Place) -> Job:
    """List the inputs. Raises DiffSegError where nothing is found, or one cannot be read."""
    kind, entries = find(request.inputs, clips=request.clips is not None, left_out=output)
    given = ", ".join(map(hidden, request.inputs))
    columns = Columns("path", True, "id")
    seals: tuple[str, ...] = ()
    if kind == PARQUET:
        tables, columns, seals = parquet_rows(entries, request.image_column, request.id_column, given)
    else:
        tables = list_rows(output, kind, entries, given)
    rows = sum(count for _, count in tables)
    workers = request.resources.workers
    # An archive is read from its beginning to its end, and a part of a clip is one piece of work.
    length = 1 if kind in (TAR, CLIPS) else request.shard_rows or choose_rows(rows, workers)
    return Job(request.asked, kind, tables, columns, length, save=request.save, clips=request.clips, seals=seals)


def _run(request: Request, job: Job, output: Place, begin: Callable[[list[int]], Reports]) -> dict[str, Any]:
    before = finished_shards(job, output)
    left = [shard for shard in range(job.shards) if shard not in before]
    word = "images" if job.clips is None else "frames"
    failed: dict[int, str] = {}
    stopped: str | None = None
    with Progress(job, before, word) as progress:
        if before:
            progress.say(f"{len(before)} of {job.shards} shards were finished before")
        if request.most_errors is not None and progress.all_errors > request.most_errors:
            return _write_summary(progress, job, output, _too_many(progress.all_errors, request.most_errors))
        try:
            with contextlib.closing(begin(left)) as reports:
                for report in reports:
                    if report["failed"] is not None:
                        failed[report["shard"]] = report["failed"]
                        progress.say(f"error: {report['failed']}")
                        if report["full"] or len(failed) > MOST_FAILED:
                            stopped = report["failed"]
                            break
                        continue
                    progress.add(report)
                    if request.most_errors is not None and progress.all_errors > request.most_errors:
                        stopped = _too_many(progress.all_errors, request.most_errors)
                        break
        except KeyboardInterrupt as interruption:
            interruption.args = (progress.text(),)
            _write_summary(progress, job, output, "interrupted")
            raise
        if stopped is None and (failed or progress.shards < len(left)):
            lost = len(left) - progress.shards
            stopped = next(iter(failed.values()), None) or (
                f"{lost} shards were not finished, for their workers ended again and again; look for lack of memory in "
                "Ray's dashboard, lower --shard-rows or raise --cpus-per-worker, and start again"
            )
        return _write_summary(progress, job, output, stopped)


def _reports(request: Request, job: Job, output: Place, open_batch: Open, work: Work, left: Sequence[int]) -> Reports:
    if not left:
        return
    if job.clips is not None:
        from runtime.bulk.clips import run_clips

        yield from run_clips(job, output, left, request.resources, open_batch, request.most_pixels)
    else:
        yield from run_shards(left, request.resources, output.text, open_batch, work, most=request.most_pixels)


def _too_many(found: int, most: int) -> str:
    return (
        f"expected at most {most} images with errors (--max-errors), found {found}; their reasons are in the column "
        "error: correct the input, or start again with a higher --max-errors"
    )


def _write_summary(progress: Progress, job: Job, output: Place, stopped: str | None) -> dict[str, Any]:
    """Write the summary; where that is impossible, it is still returned."""
    found = progress.summary() | {"stopped": stopped, "output": output.name, "job": job.key}
    found |= {"engine": job.engine, "settings": job.settings, "manifest": f"{FOLDER}/job.json"}
    with contextlib.suppress(DiffSegError):
        (output / SUMMARY).write(json.dumps(found, indent=1).encode() + b"\n")
    return found

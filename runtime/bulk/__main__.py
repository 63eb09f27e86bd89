"""Command line: `python -m runtime.bulk` segments data sets on Ray."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.errors import DiffSegError, one_line
from runtime.refine.registry import DEFAULT_PIECES
from runtime.terminal import (
    FAILED,
    USAGE_ERROR,
    Version,
    check_extra,
    interruptions_raised,
    one_line_errors,
    options_named,
    options_of,
    run,
    warnings_said,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Folders, globs, list files (.txt), Parquet files or tar archives; paths, or URIs such as "
            "s3://bucket/photos and gs://bucket/photos.",
        ),
    ],
    output: Annotated[str, typer.Option(help="Folder or URI for the results.")],
    engine: Annotated[Path | None, typer.Option(help="Engine file, on every node; the embedded default.")] = None,
    save: Annotated[
        str, typer.Option(metavar="KINDS", help="Further outputs beside the Parquet shards: kinds of diffseg segment.")
    ] = "none",
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes with an engine each.")] = 1,
    cpus_per_worker: Annotated[
        float,
        typer.Option(
            min=0, max=1024, metavar="C", help="Processors of each, shares allowed; whole ones are its threads."
        ),
    ] = 1,
    gpus_per_worker: Annotated[float, typer.Option(min=0, metavar="G", help="GPUs of each, shares allowed.")] = 0,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A Ray cluster's head, or auto; default: start one here.")
    ] = None,
    max_errors: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Stop after more images with errors; never if left out.")
    ] = None,
    shard_rows: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images of a shard; 16 to 1000, as workers need them.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(metavar="NAME", help="Parquet: pictures or paths.")] = None,
    id_column: Annotated[str | None, typer.Option(metavar="NAME", help="Parquet: names of the images.")] = None,
    clips: Annotated[bool, typer.Option("--clips", help="Segment clips, with identities, and not pictures.")] = False,
    cut: Annotated[
        int, typer.Option(min=0, metavar="N", help="Clips: frames between cuts; 0: at changes of scene alone.")
    ] = 300,
    overlap: Annotated[int, typer.Option(min=1, metavar="N", help="Clips: frames that two parts have in common.")] = 40,
    threshold: Annotated[str | None, typer.Option(metavar="T", help="As of diffseg segment.")] = None,
    grid: Annotated[int | None, typer.Option(metavar="N", help="As of diffseg segment.")] = None,
    solver: Annotated[str | None, typer.Option(metavar="NAME", help="As of diffseg segment.")] = None,
    refine: Annotated[str, typer.Option(metavar="WORDS", help="As of diffseg segment.")] = "none",
    min_area: Annotated[float, typer.Option(metavar="A", help="As of diffseg segment.")] = 0,
    pieces: Annotated[str, typer.Option(metavar="unlike|split|keep", help="As of diffseg segment.")] = DEFAULT_PIECES,
    flip: Annotated[bool, typer.Option("--flip", help="As of diffseg segment.")] = False,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda", help="Of the workers; with GPUs cuda, else auto.")
    ] = None,
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="As of diffseg segment.")] = None,
    precision: Annotated[str | None, typer.Option(metavar="fp32|bf16", help="As of diffseg segment.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of the network on a CPU; the worker's processors.")
    ] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of a picture; larger: an error.")] = None,
    object_store: Annotated[
        int | None, typer.Option(min=80, metavar="MB", help="Of Ray, where it is started here; Ray's choice.")
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard/--no-dashboard", help="Ray's, where it is started here.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one line of JSON on stdout.")] = False,
    version: Version = False,
) -> None:
    """Segment a data set on Ray, into Parquet shards. The same command again continues a job that was interrupted.

    Exit status: 0 the job is done, 1 it stopped before its end, 2 bad usage. An image that cannot be read is a row
    with its error.
    """
    from runtime.bulk.cluster import Resources
    from runtime.bulk.run import Request, run_job

    with warnings_said(), one_line_errors(USAGE_ERROR):
        check_extra("bulk")
        from runtime.bulk.batch import SegmentBatch
        from runtime.frames.limits import set_most_pixels
        from runtime.options import read_numbers
        from runtime.outputs.registry import parse_kinds

        kinds = tuple(parse_kinds(save))
        if clips and kinds:
            raise DiffSegError("--save: of clips there are Parquet shards alone; leave --save or --clips out")
        if clips and cut and overlap >= cut:
            raise DiffSegError(f"--overlap: expected fewer frames than --cut {cut}, found {overlap}")
        if max_pixels is not None:
            set_most_pixels(max_pixels)
        options: dict[str, Any] = {
            "device": device or ("cuda" if gpus_per_worker else "auto"),
            "backend": backend,
            "thresholds": "auto" if threshold == "auto" else read_numbers(threshold, "--threshold", ", or auto"),
            "grid": grid,
            "solver": solver,
            "refine": refine,
            "min_area": min_area,
            "pieces": pieces,
            "flip": flip,
            "options": {"precision": precision, "threads": threads or max(1, int(cpus_per_worker))},
        }
        if options["device"].startswith("cuda"):
            options["options"].pop("threads")
        opener = functools.partial(SegmentBatch, None if engine is None else str(engine.expanduser().absolute()))
        request = Request(
            inputs,
            output,
            kinds,
            image_column,
            id_column,
            (cut, overlap) if clips else None,
            shard_rows,
            max_errors,
            max_pixels,
            Resources(
                workers,
                cpus_per_worker,
                gpus_per_worker,
                address,
                None if object_store is None else object_store << 20,
                dashboard,
            ),
        )
    with warnings_said(), one_line_errors(), interruptions_raised(), options_named(options_of(main)):
        found = run_job(request, functools.partial(opener, **options), _say)
    if as_json:
        print(json.dumps(found), flush=True)
    if found["stopped"] is not None:
        _say(f"error: stopped: {found['stopped']}")
    _say(_last_line(found))
    raise typer.Exit(0 if found["stopped"] is None else FAILED)


def _last_line(found: dict[str, Any]) -> str:
    word = "frames" if "frames" in found else "images"
    shards = found["shards"]
    done = shards["before"] + shards["now"]
    return (
        f"{found[word]} {word}, {found['errors']} errors, {found['segments']} segments in {done} "
        f"of {shards['all']} shards: {found['output']}; now {found['now'][word]} in {found['now']['seconds']} s"
    )


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(app, "python -m runtime.bulk", "bulk")

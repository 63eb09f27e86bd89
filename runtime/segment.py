"""Command line: `python -m runtime.segment INPUT...` segments images and clips and writes overlays and labels."""

from __future__ import annotations

if __name__ == "__main__":
    from runtime.starting import signals_end_at_once

    signals_end_at_once()

import os
from pathlib import Path
from typing import Annotated

import typer

from runtime.engine.registry import BACKENDS
from runtime.errors import DiffSegError
from runtime.frames.limits import MOST_PIXELS
from runtime.merge.registry import DEFAULT, SOLVERS
from runtime.outputs.registry import KINDS
from runtime.refine.registry import DEFAULT_PIECES, REFINEMENTS
from runtime.terminal import (
    FAILED,
    USAGE_ERROR,
    Version,
    complain,
    interruptions_raised,
    one_line_errors,
    options_named,
    options_of,
    run,
    warnings_said,
)

# Words of options, from the registries that know them.
_SOLVERS = [(solver.name, solver.help) for solver in SOLVERS if solver.name != DEFAULT]
_SOLVER = "; ".join(f"{solver.name} ({solver.help})" for solver in SOLVERS)
_STEPS = [(step.name, step.help) for step in REFINEMENTS if not step.by_area]
_REFINE = ", ".join(f"{name} ({what})" for name, what in (*_SOLVERS, *_STEPS))
_OUTPUTS = ", ".join(f"{kind.name} ({kind.help})" for kind in KINDS)
_BACKENDS = ", ".join(backend.name for backend in BACKENDS)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Images, videos, folders or globs; a camera's number, a stream's URL, numbered pictures "
            "(shot_%04d.png), or - for standard input: a picture, or with --size raw BGR frames.",
        ),
    ],
    engine: Annotated[Path | None, typer.Option(help="Engine file; the embedded default if left out.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("segmented"),
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="KL threshold, or one per iteration: 1.1,1.0,0.9. Higher merges more. auto: chosen for every frame.",
        ),
    ] = None,
    grid: Annotated[int | None, typer.Option(metavar="N", help="Anchors per axis.")] = None,
    iterations: Annotated[int | None, typer.Option(metavar="N", help="Merge iterations.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Of the resolutions: proportional, per-tensor, or numbers, finest first: 1,0,0,0."),
    ] = None,
    solver: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"How maps become segments: {_SOLVER}; {DEFAULT} if left out.")
    ] = None,
    tau: Annotated[
        float | None, typer.Option(metavar="T", help="Of ncut: the value that a cut must be below, up to 2.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(metavar="A", help="Of ncut and kcut: the power of the affinity.")
    ] = None,
    refine: Annotated[
        str,
        typer.Option(metavar="WORDS", help=f"With commas: {_REFINE}; or none."),
    ] = "none",
    hierarchy: Annotated[
        str | None,
        typer.Option(
            metavar="T,T,...",
            help="Photographs: also write nested segmentations, one for each threshold. A level has more segments "
            "than a run with its threshold, since it is made of the finest level's.",
        ),
    ] = None,
    min_area: Annotated[
        float,
        typer.Option(metavar="A", help="Smaller regions go to their neighbours: share of the frame, or pixels from 1."),
    ] = 0,
    pieces: Annotated[
        str,
        typer.Option(
            metavar="unlike|split|keep",
            help="Pieces that do not touch become segments: those unlike the others, all, or none.",
        ),
    ] = DEFAULT_PIECES,
    flip: Annotated[
        bool,
        typer.Option(
            "--flip", help="The network also sees the mirror image, for twice its time: both get the same segments."
        ),
    ] = False,
    word_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="S", help="Of an engine with words: the least share that gives a segment its word, 0 to 1."
        ),
    ] = None,
    merge_words: Annotated[
        bool, typer.Option("--merge-words", help="Of an engine with words: neighbours of one word are one segment.")
    ] = False,
    tiles: Annotated[
        str | None,
        typer.Option(
            metavar="auto|RxC",
            help="Large photographs: in overlapping tiles, of the engine's own size or in R rows and C columns.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where to run.")] = "auto",
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"{_BACKENDS}; by file and CPU if left out.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="fp32|bf16", help="On a CPU with OpenVINO; bf16 where it has units for it.")
    ] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", help="Of the network on a CPU; all if left out.")] = None,
    save: Annotated[
        str,
        typer.Option(
            metavar="KINDS",
            help=f"What to write, with commas: {_OUTPUTS}; or none.",
        ),
    ] = "overlay,labels",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Skip inputs that an earlier run has done with the same engine and settings.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per frame on stdout.")] = False,
    start: Annotated[str, typer.Option(metavar="TIME", help="Clips: begin here, in seconds or h:m:s.")] = "0",
    end: Annotated[str | None, typer.Option(metavar="TIME", help="Clips: end here.")] = None,
    every: Annotated[
        int, typer.Option(metavar="N", help="Clips: the engine sees every Nth frame; optical flow carries between.")
    ] = 1,
    skip_similar: Annotated[
        bool, typer.Option("--skip-similar", help="Clips: a frame like the last one keeps its labels.")
    ] = False,
    temporal: Annotated[
        str, typer.Option(metavar="on|off", help="Clips: labels are identities that stay with their objects.")
    ] = "on",
    warm_start: Annotated[
        bool, typer.Option("--warm-start/--no-warm-start", help="With --temporal on: merge from the last proposals.")
    ] = False,
    reconnect: Annotated[
        bool, typer.Option("--reconnect", help="Open a camera or stream again when it drops.")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Clips: show the overlay in a window; q ends.")] = False,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Width x height of raw frames on standard input.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="FPS", help="Of raw frames and numbered pictures: 30, 30000/1001; default 25.")
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(metavar="N", help="Larger pictures and frames are refused before they are decoded.")
    ] = MOST_PIXELS,
    version: Version = False,
) -> None:
    """Segment images and clips with DiffSeg: no labels, no prompt, no training.

    Writes <name>_overlay.png or .mp4 to look at and <name>_labels.png, one segment index per pixel, for programs; of a
    clip one picture per frame in the folder <name>_labels.
    Exit status: 0 all done, 1 some inputs failed, 2 bad usage.
    """
    from runtime.frames.find import find_sources
    from runtime.frames.limits import set_most_pixels
    from runtime.frames.opening import settle_sources

    with warnings_said(), one_line_errors(USAGE_ERROR):
        from runtime.engine.base import no_words
        from runtime.outputs.registry import needing_words, parse_kinds
        from runtime.stream.options import parse_options

        kinds = parse_kinds(save)
        if resume and not kinds:
            raise DiffSegError("--resume: expected outputs to go by, found --save none; leave one of them out")
        set_most_pixels(max_pixels)
        if precision not in (None, "fp32", "bf16"):
            raise DiffSegError(f"--precision: expected fp32 or bf16, found {precision!r}")
        options = parse_options(
            start=start,
            end=end,
            every=every,
            skip_similar=skip_similar,
            warm_start=warm_start,
            temporal=temporal,
            reconnect=reconnect,
            show=show,
            size=size,
            rate=rate,
        )
        levels = None if hierarchy is None else _levels(hierarchy)
        if tiles is not None and levels is not None:
            raise DiffSegError("--tiles: a hierarchy is of the whole frame; leave out --hierarchy or --tiles")
        from runtime.options import read_numbers
        from runtime.segmenter import Segmenter
        from runtime.tiles.layout import parse_tiles
        from runtime.tiles.tiled import TiledStages

        with options_named(options_of(main)):
            segmenter = Segmenter.open(
                engine,
                device,
                backend=backend,
                thresholds="auto" if threshold == "auto" else read_numbers(threshold, "--threshold", ", or auto"),
                iterations=iterations,
                solver=solver,
                tau=tau,
                alpha=alpha,
                refine=refine,
                min_area=min_area,
                pieces=pieces,
                flip=flip,
                word_threshold=word_threshold,
                merge_words=merge_words,
                weights=_weights(weights),  # type: ignore[arg-type]
                grid=grid,
                options={"precision": precision, "threads": threads},
            )
        if (wordless := needing_words(kinds)) and segmenter.stages.naming is None:
            raise DiffSegError(f"--save {wordless[0]}: {no_words(segmenter.engine.spec)}")
        if levels is not None:
            segmenter.stages.route.check_maps("--hierarchy")
        tiled = None if tiles is None else TiledStages(segmenter.stages, parse_tiles(tiles))
    from runtime.stream.run import Run

    with one_line_errors(), interruptions_raised():
        if kinds:
            _check_output(output, resume)
        run_all = Run(
            segmenter.stages, output, kinds, options, levels=levels, as_json=as_json, resume=resume, tiled=tiled
        )
        sources, failures = find_sources(inputs)
        for failure in failures:
            complain(failure)
        if not sources and not failures:
            raise DiffSegError("nothing to do: every input is a picture that this program wrote")
        failed = run_all(settle_sources(sources, size=options.size, rate=options.rate), missing=len(failures))
    raise typer.Exit(FAILED if failed else 0)


def _check_output(folder: Path, resume: bool) -> None:
    """Raise DiffSegError where a file is in the way of the folder for the results, or nothing can be written there.

    `resume`: perhaps nothing is to be written.
    """
    file = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if file.is_file():
        raise DiffSegError(
            f"--output {folder}: cannot be written, expected a folder, found the file {file}; name another folder, or "
            "move the file away"
        )
    if not resume and not os.access(file, os.W_OK | os.X_OK):
        raise DiffSegError(
            f"--output {folder}: cannot be written, expected a folder you may write to, found {file}, which is "
            "read-only; name another folder"
        )


def _weights(text: str | None) -> str | float | tuple[float, ...] | None:
    """A rule's name, or numbers."""
    from runtime.options import read_numbers

    return (
        text
        if text in ("proportional", "per-tensor")
        else read_numbers(text, "--weights", ", or proportional, or per-tensor")
    )


def _levels(text: str) -> tuple[float, ...]:
    """Thresholds of a hierarchy's levels, ascending."""
    from runtime.merge.grouping import as_sweep
    from runtime.options import read_numbers

    with options_named({"thresholds": "--hierarchy"}):
        return as_sweep(read_numbers(text, "--hierarchy"))  # type: ignore[arg-type]


if __name__ == "__main__":
    run(app, "python -m runtime.segment", writes_late=True)

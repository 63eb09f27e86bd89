"""Command line: `python -m runtime.segment INPUT...` segments images and clips and writes overlays and labels."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.errors import DiffSegError
from runtime.terminal import FAILED, USAGE_ERROR, complain, one_line_errors, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

    from runtime.frames.source import Source
    from runtime.segmenter import Segmenter
    from runtime.stream.clip import ClipOptions

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Images, videos, folders or globs; a camera's number, a stream's URL, numbered pictures "
            "(shot_%04d.png), or - for raw BGR frames on standard input.",
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
    refine: Annotated[
        str,
        typer.Option(help="kmeans (of the maps), snap (borders follow the image's edges), kmeans,snap, or none."),
    ] = "none",
    min_area: Annotated[
        float,
        typer.Option(metavar="A", help="Smaller regions go to their neighbours: share of the frame, or pixels from 1."),
    ] = 0,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where to run.")] = "auto",
    backend: Annotated[
        str | None, typer.Option(help="onnxruntime, openvino, tensorrt or tensorrt_rtx; by file and CPU if left out.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="fp32|bf16", help="On a CPU with OpenVINO; bf16 where it has units for it.")
    ] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", help="Of the network on a CPU; all if left out.")] = None,
    save: Annotated[
        str,
        typer.Option(
            help="What to write, with commas: overlay, labels, segments (colours alone), archive (a clip's labels in "
            "one .npz); or none."
        ),
    ] = "overlay,labels",
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
) -> None:
    """Segment images and clips with DiffSeg: no labels, no prompt, no training.

    Writes <name>_overlay.png or .mp4 to look at and <name>_labels.png, one segment index per pixel, for programs; of a
    clip one picture per frame in the folder <name>_labels.
    Exit status: 0 all done, 1 some inputs failed, 2 bad usage.
    """
    from runtime.frames.find import find_sources

    with one_line_errors(USAGE_ERROR):
        from runtime.stream.options import parse_options, parse_save

        kinds = parse_save(save)
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
        from runtime.segmenter import Segmenter

        segmenter = Segmenter.open(
            engine,
            device,
            backend=backend,
            thresholds="auto" if threshold == "auto" else _numbers(threshold, "--threshold"),
            iterations=iterations,
            refine=refine,
            min_area=min_area,
            weights=weights if weights in (None, "proportional", "per-tensor") else _numbers(weights, "--weights"),
            grid=grid,
            options={"precision": precision, "threads": threads},
        )
    with one_line_errors():
        sources, failures = find_sources(inputs)
        for failure in failures:
            complain(failure)
        failed = len(failures) + _run(segmenter, sources, output, kinds, options, as_json)
        if not sources and not failures:
            raise DiffSegError("nothing to do: every input is a picture that this program wrote")
    raise typer.Exit(FAILED if failed else 0)


def _numbers(text: str | None, option: str) -> float | tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        auto = ", or auto" if option == "--threshold" else ""
        raise DiffSegError(f"{option}: expected numbers with commas between them{auto}, found {text!r}") from None
    return numbers[0] if len(numbers) == 1 and option == "--threshold" else numbers


def _run(
    segmenter: Segmenter, sources: list[Source], output: Path, kinds: list[str], options: ClipOptions, as_json: bool
) -> int:
    """Segment every source; returns how many failed, each named on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    taken = {Path(os.path.realpath(source.path)) for source in sources if not source.address}
    failed = 0
    single = len(sources) == 1
    quiet = not console.is_terminal or (single and sources[0].kind == "image")

    def say(line: str) -> None:
        if quiet:
            print(" ".join(line.split()), file=sys.stderr)
        else:  # above the bar, in one line however long
            console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)

    def report(line: dict[str, object]) -> None:
        if as_json:
            # ASCII, so that any name can be printed whatever the terminal's encoding.
            print(json.dumps(line), flush=True)

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    # stdout is for JSON alone: rich would otherwise send what is printed there to the bar's own stream.
    with Progress(
        *columns, console=console, disable=quiet, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as progress:
        whole = None if single else progress.add_task("Segmenting", total=len(sources), detail="")
        for source in sources:
            try:
                if source.kind == "image":
                    line = _segment_one(segmenter, source, output, _of_pictures(kinds), taken)
                    report(line)
                    done = _summary(line, source, output, kinds)
                else:
                    lost, done = _segment_clip(
                        segmenter, source, output, kinds, options, taken, progress=progress, report=report, say=say
                    )
                    failed += bool(lost)
                if not as_json and (single or source.kind != "image"):
                    say(done if single else f"{source.name}: {done}")
            except DiffSegError as error:
                failed += 1
                say(f"error: {error}")
            if whole is not None:
                progress.advance(whole)
    if sources and not as_json and not single:
        what = "images" if all(source.kind == "image" for source in sources) else "inputs"
        print(f"{len(sources) - failed} of {len(sources)} {what} segmented into {output}", file=sys.stderr)
    return failed


def _of_pictures(kinds: list[str]) -> list[str]:
    """What is written of an image: it needs no archive."""
    return list(dict.fromkeys("labels" if kind == "archive" else kind for kind in kinds))


def _summary(line: dict[str, object], source: Source, output: Path, kinds: list[str]) -> str:
    from runtime.outputs.registry import output_path

    written = ", ".join(str(output_path(output, source.target, kind)) for kind in _of_pictures(kinds))
    return f"{line['segments']} segment{'' if line['segments'] == 1 else 's'}: {written or 'nothing written'}"


def _segment_clip(
    segmenter: Segmenter,
    source: Source,
    output: Path,
    kinds: list[str],
    options: ClipOptions,
    taken: set[Path],
    *,
    progress: Progress,
    report: Callable[[dict[str, object]], None],
    say: Callable[[str], None],
) -> tuple[tuple[str, ...], str]:
    """Segment one clip over none of the inputs `taken`; returns what was lost of it, and a line that sums it up."""
    from runtime.stream.run import clip_paths, run_clip

    paths = clip_paths(output, source.target, kinds)
    _keep(source, list(paths.values()), taken)
    outcome = run_clip(segmenter, source, paths, options, progress=progress, report=report, say=say)
    for problem in outcome.lost:
        say(f"warning: {source.name}: {problem}; {outcome.frames} frames were segmented")
    return outcome.lost, str(outcome)


def _keep(source: Source, written: list[Path], taken: set[Path]) -> None:
    """Raise DiffSegError where an input would be written over."""
    clash = [path for path in written if Path(os.path.realpath(path)) in taken]
    if clash:
        raise DiffSegError(f"{source.name}: would overwrite the input {clash[0]}; choose another --output")


def _segment_one(
    segmenter: Segmenter, source: Source, output: Path, kinds: list[str], taken: set[Path]
) -> dict[str, object]:
    """Read, segment and write one image, over none of the inputs `taken`; returns its JSON line."""
    from runtime.frames.decode import read_frame
    from runtime.outputs.png import write_png
    from runtime.outputs.registry import KINDS, output_path

    written = [output_path(output, source.target, kind) for kind in kinds]
    _keep(source, written, taken)
    frame = read_frame(source.path)
    result = segmenter(frame)
    for path, kind in zip(written, kinds, strict=True):
        write_png(path, KINDS[kind](frame, result.labels))
    return {
        "input": str(source.path),
        "frame": 0,
        "size": list(frame.shape[:2]),
        "segments": result.count,
        **({} if result.thresholds is None else {"thresholds": result.thresholds}),
        "milliseconds": result.milliseconds,
    }


if __name__ == "__main__":
    run(app, "python -m runtime.segment")

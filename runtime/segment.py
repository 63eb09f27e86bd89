"""Command line: `python -m runtime.segment INPUT...` segments images and writes overlays and labels."""

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
    from runtime.frames import Source
    from runtime.segmenter import Segmenter

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Images, folders or globs.")],
    engine: Annotated[Path | None, typer.Option(help="Engine file; the embedded default if left out.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("segmented"),
    threshold: Annotated[
        str | None,
        typer.Option(metavar="T", help="KL threshold, or one per iteration: 1.1,1.0,0.9. Higher merges more."),
    ] = None,
    grid: Annotated[int | None, typer.Option(metavar="N", help="Anchors per axis.")] = None,
    iterations: Annotated[int | None, typer.Option(metavar="N", help="Merge iterations.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Of the resolutions: proportional, per-tensor, or numbers, finest first: 1,0,0,0."),
    ] = None,
    refine: Annotated[str, typer.Option(help="none or kmeans.")] = "none",
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where to run.")] = "auto",
    backend: Annotated[str | None, typer.Option(help="onnxruntime or openvino.")] = None,
    save: Annotated[
        str, typer.Option(help="What to write, with commas: overlay, labels, segments (colours alone).")
    ] = "overlay,labels",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per frame on stdout.")] = False,
) -> None:
    """Segment images with DiffSeg: no labels, no prompt, no training.

    Writes <name>_overlay.png to look at and <name>_labels.png, one segment index per pixel, for programs.
    Exit status: 0 all done, 1 some inputs failed, 2 bad usage.
    """
    from runtime.frames import find_sources
    from runtime.outputs import KINDS

    with one_line_errors(USAGE_ERROR):
        kinds = [kind.strip() for kind in save.split(",") if kind.strip()]
        if not kinds or not set(kinds) <= set(KINDS):
            raise DiffSegError(f"--save: expected some of {', '.join(KINDS)}, found {save!r}")
        from runtime.segmenter import Segmenter

        segmenter = Segmenter.open(
            engine,
            device,
            backend=backend,
            thresholds=_numbers(threshold, "--threshold"),
            iterations=iterations,
            refine=refine,
            weights=weights if weights in (None, "proportional", "per-tensor") else _numbers(weights, "--weights"),
            grid=grid,
        )
    with one_line_errors():
        sources, failures = find_sources(inputs)
        for failure in failures:
            complain(failure)
        failed = len(failures) + _run(segmenter, sources, output, kinds, as_json)
        if not sources and not failures:
            raise DiffSegError("nothing to do: every input is a picture that this program wrote")
    raise typer.Exit(FAILED if failed else 0)


def _numbers(text: str | None, option: str) -> float | tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise DiffSegError(f"{option}: expected numbers with commas between them, found {text!r}") from None
    return numbers[0] if len(numbers) == 1 and option == "--threshold" else numbers


def _run(segmenter: Segmenter, sources: list[Source], output: Path, kinds: list[str], as_json: bool) -> int:
    """Segment every source; returns how many failed, each named on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    from runtime.outputs import output_path

    console = Console(stderr=True)
    taken = {Path(os.path.realpath(source.path)) for source in sources}
    failed = 0
    quiet = len(sources) < 2 or not console.is_terminal

    def say(error: DiffSegError) -> None:
        if quiet:
            complain(str(error))
        else:  # above the bar, in one line however long
            console.print(f"error: {error}", soft_wrap=True, markup=False, highlight=False, emoji=False)

    # stdout is for JSON alone: rich would otherwise send what is printed there to the bar's own stream.
    with Progress(
        console=console, disable=quiet, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as progress:
        for source in progress.track(sources, description="Segmenting"):
            try:
                line = _segment_one(segmenter, source, output, kinds, taken)
            except DiffSegError as error:
                failed += 1
                say(error)
                continue
            if as_json:
                # ASCII, so that any name can be printed whatever the terminal's encoding.
                print(json.dumps(line), flush=True)
            elif len(sources) == 1:
                written = ", ".join(str(output_path(output, source.target, kind)) for kind in kinds)
                plural = "" if line["segments"] == 1 else "s"
                print(f"{line['segments']} segment{plural}: {written}", file=sys.stderr)
    if not as_json and len(sources) > 1:
        print(f"{len(sources) - failed} of {len(sources)} images segmented into {output}", file=sys.stderr)
    return failed


def _segment_one(
    segmenter: Segmenter, source: Source, output: Path, kinds: list[str], taken: set[Path]
) -> dict[str, object]:
    """Read, segment and write one image, over none of the inputs `taken`; returns its JSON line."""
    from runtime.frames import read_frame
    from runtime.outputs import KINDS, output_path, write_png

    written = [output_path(output, source.target, kind) for kind in kinds]
    clash = [path for path in written if Path(os.path.realpath(path)) in taken]
    if clash:
        raise DiffSegError(f"{source.path}: would overwrite the input {clash[0]}; choose another --output")
    frame = read_frame(source.path)
    result = segmenter(frame)
    for path, kind in zip(written, kinds, strict=True):
        write_png(path, KINDS[kind](frame, result))
    return {
        "input": str(source.path),
        "frame": 0,
        "size": list(frame.shape[:2]),
        "segments": result.count,
        "milliseconds": result.milliseconds,
    }


if __name__ == "__main__":
    run(app, "python -m runtime.segment")

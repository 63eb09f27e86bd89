"""Command line: `diffseg triton ENGINE --output models/` writes a model for Triton."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from runtime.terminal import Version, interruptions_raised, one_line_errors, options_named, run

_NAMES = {name: f"--{name.replace('_', '-')}" for name in ("threshold", "refine", "min_area", "pieces", "threads")}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    engine: Annotated[
        Path, typer.Argument(metavar="ENGINE", help="Engine file, .onnx or .plan; tiny is the embedded one.")
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The model repository; made if missing.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the model; the file's if left out.")] = None,
    backend: Annotated[
        str,
        typer.Option(
            metavar="auto|python|onnxruntime|tensorrt",
            help="Of Triton. python: with this runtime inside, for any engine. auto: its own for engines with the head "
            "labels, where they can, else python.",
        ),
    ] = "auto",
    device: Annotated[
        str,
        typer.Option(metavar="auto|cpu|cuda[:N]", help="auto: on each GPU that Triton finds, else on the CPU."),
    ] = "auto",
    max_batch: Annotated[
        int | None,
        typer.Option(min=0, max=1024, metavar="N", help="Frames that Triton may run together; 8 where it can."),
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(metavar="T", help="Where a request names none: a number, one per iteration, or auto.")
    ] = None,
    refine: Annotated[str, typer.Option(metavar="WORDS", help="As of diffseg segment; backend python.")] = "none",
    min_area: Annotated[float, typer.Option(metavar="A", help="As of diffseg segment; backend python.")] = 0,
    pieces: Annotated[
        str | None,
        typer.Option(metavar="unlike|split|keep", help="As of diffseg segment; backend python; default: unlike."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Of an instance's network on a CPU; all if left out.")
    ] = None,
    version: Version = False,
) -> None:
    """Write a model for NVIDIA's Triton Inference Server: the engine, config.pbtxt, and a first request.

    Prints the model's folder. A folder that exists is left as it is.
    """
    with one_line_errors(), interruptions_raised(), options_named(_NAMES | {"thresholds": "--threshold"}):
        from runtime.engine.registry import check_device
        from runtime.hosts.triton.repository import Wish, write_model

        check_device(device)
        wish = Wish(engine, name, backend, device, max_batch, threshold, refine, min_area, pieces, threads)
        written = write_model(wish, output)
    print(f"backend {written.backend}{'; ' if written.note else ''}{written.note}", file=sys.stderr)
    print(written.folder)


if __name__ == "__main__":
    run(app, "python -m runtime.hosts.triton", "cpu", writes_late=True)

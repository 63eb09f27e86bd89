"""`diffseg engine`: engines for programs that are not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import DiffSegError
from runtime.terminal import USAGE_ERROR, one_line_errors, run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def engine() -> None:
    """Make engines for programs that are not ours; needs neither PyTorch nor a model."""


@app.command()
def labels(
    engine: Annotated[
        Path | None, typer.Argument(metavar="ENGINE.onnx", help="Engine of attention maps; tiny if left out.")
    ] = None,
    *,
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where NAME-labels.onnx, its sidecar and NAME-labels.h go.")
    ],
    input: Annotated[
        str | None, typer.Option(metavar="LAYOUT", help="How it takes a frame, as of diffseg export; as ENGINE does.")
    ] = None,
) -> None:
    """Make a labels engine, which any ONNX host runs, of the embedded engine or of another one of its shape."""
    with one_line_errors():
        from runtime.engine.registry import EMBEDDED, EMBEDDED_NAME
        from runtime.hosts.engine.labels import write_labels_engine

        source = EMBEDDED if engine is None or str(engine) == EMBEDDED_NAME else engine
        print(*write_labels_engine(source, output, layout=input), sep="\n")


@app.command()
def nvinfer(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE.onnx", help="Labels engine of planar float frames.")],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Configuration to write; nvinfer's model gets the same stem.")
    ],
    threshold: Annotated[
        str | None, typer.Option(metavar="T,T,...", help="KL thresholds, constants of the model; the engine's own.")
    ] = None,
) -> None:
    """Write the configuration of DeepStream's nvinfer for a labels engine, and the model that it runs."""
    with one_line_errors(USAGE_ERROR):
        from runtime.options import read_numbers

        thresholds = read_numbers(threshold, "--threshold")
        if output.suffix.lower() == ".onnx" or output.is_dir():
            raise DiffSegError(
                f"--output {output}: expected the name of a configuration, such as {output.with_suffix('.txt')}"
            )
    with one_line_errors():
        from runtime.hosts.engine.nvinfer import write_nvinfer

        print(*write_nvinfer(engine, output, thresholds), sep="\n")


if __name__ == "__main__":
    run(app, "diffseg engine", "cpu")

"""`python -m export check ENGINE MODEL`: compares an engine with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from export.commands.options import Config
from export.commands.report import report
from runtime.terminal import check_extra, one_line_errors


def check(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE.onnx", help="Engine file, .onnx.")],
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model it was exported from: folder, hub id or checkpoint.")
    ],
    vae: Annotated[str | None, typer.Option(metavar="FOLDER|ID", help="The VAE it was exported with.")] = None,
    config: Config = None,
) -> None:
    """Compare an engine with PyTorch on a random frame. Exit status: 0 within bounds, 1 out of bounds, 2 bad usage."""
    check_extra("export")
    with one_line_errors():
        check_extra("export")
        from export.parity import check_engine

        checks = check_engine(engine, model, vae=vae, config=config)
    report(checks)
    raise typer.Exit(0 if all(found.passed for found in checks) else 1)

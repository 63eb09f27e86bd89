"""Build the native merge core ahead of its first use: ``python -m runtime.native build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import DiffSegError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """The merge core for GPUs."""


@app.command()
def build(
    arch: Annotated[
        str, typer.Option(help="Compute capabilities without the dot, for example 87 or 80,90. Default: all.")
    ] = "",
    cpu: Annotated[bool, typer.Option("--cpu", help="The same source for the CPU: for tests, not for speed.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder to build into. Default: the user's cache.")] = None,
) -> None:
    """Compile the library with nvcc and print its path. Needs no GPU."""
    from runtime.native import build as builder

    try:
        numbers = [int(word) for word in arch.split(",")] if arch else list(builder.ARCHITECTURES)
        if min(numbers) < min(builder.ARCHITECTURES):
            raise ValueError
    except ValueError:
        oldest = min(builder.ARCHITECTURES)
        typer.echo(f"--arch: expected numbers from {oldest} on, such as 87 or 80,90, found {arch!r}", err=True)
        raise typer.Exit(2) from None
    target = output / builder.NAME if output else builder.cached_library(numbers, cpu)
    try:
        made = builder.build_cpu_library(target) if cpu else builder.build_library(target, numbers)
    except DiffSegError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    typer.echo(str(made))


if __name__ == "__main__":
    app()

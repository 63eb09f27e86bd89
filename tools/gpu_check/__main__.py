"""`python -m tools.gpu_check`: everything that needs a GPU, in one command."""

from pathlib import Path
from typing import Annotated

import typer

from runtime.terminal import run
from tools.command import single_command
from tools.gpu_check.bench import Bench
from tools.gpu_check.check import run_check


def check(
    output: Annotated[Path, typer.Option(help="The report.")] = Path("gpu_report.json"),
    only: Annotated[list[str] | None, typer.Option(metavar="PART", help="This part; may be given again.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=1, help="Run what fits into this time, in order of worth. Default: all.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Timed runs.")] = 50,
    device: Annotated[int, typer.Option(min=0, help="Which GPU.")] = 0,
    dry: Annotated[bool, typer.Option("--dry", help="Walk through it without a GPU, the CPU in its place.")] = False,
) -> None:
    """Build, test and time on this machine's GPU.

    Exit 1: no GPU, or a part that failed or was ended. Exit 2: the report cannot be written there, or no such part.
    """
    bench = Bench(device=device, repeat=repeat, dry=dry)
    passed = run_check(output, bench, only or [], minutes, lambda text: typer.echo(text, err=True))
    raise typer.Exit(0 if passed else 1)


app = single_command(check)

if __name__ == "__main__":
    run(app, "python -m tools.gpu_check")

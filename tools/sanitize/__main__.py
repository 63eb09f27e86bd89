"""`python -m tools.sanitize`: the merge core's C library under sanitizers, in its tests and in a fuzzer."""

import json
from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import UsageError
from runtime.terminal import run
from tools.command import single_command
from tools.sanitize.plan import PARTS, chosen
from tools.sanitize.running import Outcome, run_part


def sanitize(
    minutes: Annotated[float, typer.Option(min=0.1, help="Of fuzzing, in all. The tests take as long as they do.")] = 5,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="WORDS", help="Parts with these words: 'fuzz thread'; may be given again."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for logs and for inputs that fail.")] = Path("sanitized"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout in place of the table.")] = False,
) -> None:
    """Build the library for the CPU with AddressSanitizer and UndefinedBehaviorSanitizer, and with ThreadSanitizer.

    Each runs the fuzzer over configurations and frames and the native tests, with the plain tile product and with
    the emulated tensor cores. Exit 1: a sanitizer found something, or a compiler is missing.
    """
    parts = chosen(only or [])
    if not parts:
        names = "; ".join(part.name for part in PARTS)
        raise UsageError(f"--only: expected words of {names}; found {', '.join(only or [])}")
    fuzzers = sum(part.kind == "fuzz" for part in parts)
    seconds = max(1, round(60 * minutes / max(fuzzers, 1)))
    found = [run_part(part, output.resolve(), seconds, lambda text: typer.echo(text, err=True)) for part in parts]
    typer.echo(json.dumps([each.to_json() for each in found], indent=1)) if as_json else _print(found)
    raise typer.Exit(0 if all(each.status == "clean" for each in found) else 1)


def _print(found: list[Outcome]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "result", "seconds", "inputs or tests", "places covered")
    for each in found:
        covered = "" if each.covered is None else str(each.covered)
        table.add_row(each.name, each.why or each.status, f"{each.seconds:.0f}", str(each.inputs), covered)
    Console().print(table)


app = single_command(sanitize)

if __name__ == "__main__":
    run(app, "python -m tools.sanitize")

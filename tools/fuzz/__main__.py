"""`python -m tools.fuzz READER`: damages drawn inputs of a reader until the time is over."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.terminal import run
from tools.command import single_command
from tools.fuzz.readers import READERS
from tools.fuzz.work import SIZE, Board, save

HANG = 60.0  # seconds for one input
Choice = Enum("Choice", {name: name for name in (*READERS, "all")}, type=str)  # type: ignore[misc]


def fuzz(
    reader: Annotated[Choice, typer.Argument(help="What is fuzzed.")],
    minutes: Annotated[float, typer.Option(min=0.01, help="How long; of all together.")] = 10,
    output: Annotated[Path, typer.Option(help="Folder for the inputs that are found.")] = Path("fuzzed"),
    coverage: Annotated[
        bool, typer.Option(help="Guided by coverage, if atheris is installed; otherwise random mutations.")
    ] = True,
    seed: Annotated[int, typer.Option(min=1, help="Of the random numbers.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Damage inputs of a reader, and see that each is read or is one line of error.

    Seeds are drawn. Readers: pictures, sidecars of engines, label archives and journals, INPUT with numbered patterns,
    standard input. Whatever raises something else, crashes or hangs is kept in a file. Exit 1: something was found.
    """
    chosen = list(READERS) if reader.value == "all" else [reader.value]
    found = [fuzz_reader(name, 60 * minutes / len(chosen), output, coverage, seed) for name in chosen]
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for line in found:
            typer.echo("{reader}: {inputs} inputs, {found} found, {crashes} crashes, {hangs} hangs".format(**line))
    raise typer.Exit(1 if any(line["found"] for line in found) else 0)


def fuzz_reader(name: str, seconds: float, output: Path, coverage: bool = True, seed: int = 1) -> dict[str, Any]:
    """Fuzz one reader in a process of its own; how many inputs were tried, and what was found."""
    end = time.monotonic() + seconds
    guided = coverage and importlib.util.find_spec("atheris") is not None
    crashes = hangs = 0
    output.mkdir(parents=True, exist_ok=True)
    before = set(output.glob(f"{name}-*.bin"))
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(SIZE)
        board = Board(Path(file.name))
        while (left := end - time.monotonic()) > 0 and crashes + hangs < 10:
            words = [name, str(left), file.name, str(output), str(int(guided)), str(seed + crashes + hangs)]
            work = [sys.executable, "-m", "tools.fuzz.work", *words]
            process = subprocess.Popen(work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            status = _watch(process, board, end)
            if status is None:
                hangs += 1
                save(output, READERS[name], board.current, f"hangs {hangs}")
            elif status != 0:
                crashes += 1
                how = signal.Signals(-status).name if status < 0 else f"status {status}"
                save(output, READERS[name], board.current, f"crashes ({how}) {crashes}")
            else:
                break
        tried = board.count
    found = set(output.glob(f"{name}-*.bin")) - before
    return {
        "reader": name,
        "guided": guided,
        "inputs": tried,
        "found": len(found),
        "crashes": crashes,
        "hangs": hangs,
        "cases": sorted(map(str, found)),
    }


def _watch(process: subprocess.Popen[bytes], board: Board, end: float) -> int | None:
    """The exit status; None where one input takes too long. A process that outlives its time by itself is ended."""
    count, since = board.count, time.monotonic()
    try:
        while process.poll() is None:
            time.sleep(0.1)
            now = time.monotonic()
            if board.count != count:
                count, since = board.count, now
            if now - since > HANG:
                return None
            if now > end + 5:
                return 0
        return process.returncode
    finally:
        process.kill()
        process.wait()


app = single_command(fuzz)

if __name__ == "__main__":
    run(app, "python -m tools.fuzz")

"""Runs the parts one after the other, and reads what the fuzzer says of itself."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.errors import DiffSegError
from tools.sanitize.plan import CORPUS, FINDING, INPUT, ROOT, Part

SEEDS = 32  # of random bytes, which reach the kernels sooner than an empty input


@dataclass(slots=True)
class Outcome:
    """What came of a part.

    Attributes:
        status: "clean", "found" or "failed".
        seconds: that it ran.
        inputs: that the fuzzer tried, or the tests that passed.
        covered: places in the code that the fuzzer reached; None for tests.
        why: what was found, for a part that is not clean.
    """

    name: str
    status: str
    seconds: float
    inputs: int
    covered: int | None = None
    why: str | None = None

    def to_json(self) -> dict[str, object]:
        """For the report."""
        return asdict(self)


def run_part(part: Part, folder: Path, seconds: int, say: Callable[[str], None]) -> Outcome:
    """Build and run one part. What it prints goes to `<folder>/<name>/log.txt`, inputs that fail beside it.

    Raises DiffSegError where a compiler is missing or fails.
    """
    own = folder / part.name.replace(", ", "-")
    own.mkdir(parents=True, exist_ok=True)
    built = own / ("library.so" if part.kind == "tests" else "fuzzer")
    say(f"{part.name}: builds")
    for command in part.build_commands(built):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DiffSegError(f"{part.name}: cannot be built:\n{done.stderr[-3000:]}")
    if part.kind == "fuzz":
        plant_seeds(folder / CORPUS)
    say(f"{part.name}: runs" + (f" for {seconds} s" if part.kind == "fuzz" else ""))
    start, log = time.monotonic(), own / "log.txt"
    with log.open("w") as out:
        command = part.run_command(built, own, seconds)
        status = subprocess.run(command, cwd=ROOT, env=part.environment(built), stdout=out, stderr=out, check=False)
    outcome = read_log(part, status.returncode, log.read_text(errors="replace"), time.monotonic() - start)
    if outcome.why:
        outcome.why += f"; see {log}"
    say(f"{part.name}: {outcome.status}")
    return outcome


def plant_seeds(corpus: Path) -> None:
    """The same random inputs in every run, beside those that earlier runs found."""
    corpus.mkdir(exist_ok=True)
    draw = random.Random(0)
    for number in range(SEEDS):
        (corpus / f"seed-{number:02}").write_bytes(draw.randbytes(draw.choice((64, 128, INPUT))))


def read_log(part: Part, status: int, text: str, seconds: float) -> Outcome:
    """What a part's exit status and output mean."""
    report = re.search(r"^.*(?:ERROR: |WARNING: ThreadSanitizer|runtime error: |^wrong: ).*$", text, re.M)
    if part.kind == "tests":
        # Without capture a test's own output may be among the dots of its line.
        count = sum(dots.count(".") for dots in re.findall(r"^([.sxX]+)(?: +\[ *\d+%\])?$", text, re.M))
        covered = None
    else:
        tried = re.search(r"^stat::number_of_executed_units: (\d+)", text, re.M)
        steps = re.findall(r"^#(\d+)\s", text, re.M)
        count = int(tried[1]) if tried else int(steps[-1]) if steps else 0
        reached = re.findall(r"\bcov: (\d+)", text)
        covered = int(reached[-1]) if reached else 0
    if status == 0 and report is None:
        return Outcome(part.name, "clean", seconds, count, covered)
    if report is not None or status == FINDING:
        return Outcome(part.name, "found", seconds, count, covered, report[0].strip() if report else "a finding")
    last = text.strip().splitlines()[-1:] or ["no output"]
    return Outcome(part.name, "failed", seconds, count, covered, f"exit {status}: {last[0][:300]}")

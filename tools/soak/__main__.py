"""`python -m tools.soak --minutes N`: attacks the runtime for so long, and prints what it withstood."""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.errors import UsageError
from runtime.frames.opening import open_clip
from runtime.frames.source import Source
from runtime.terminal import check_extra, run
from tools.benchmark.common import in_fresh_process, machine
from tools.command import single_command
from tools.fuzz.__main__ import fuzz_reader
from tools.fuzz.readers import READERS
from tools.fuzz.work import mutate
from tools.soak.faults import inject, make_inputs
from tools.soak.long import clones, cycles, determinism, long_clip

FRAMES, CYCLES = 20_000, 500
PARTS = ("frames", "cycles", "clones", "determinism", "faults", "fuzzers")
FULL = 15.0  # minutes from which the long runs have their full length
# glibc gives each thread an arena of its own, which keeps some of what it had: with threads that come and go these are
# tens of MB, which settle only after hundreds of Segmenters. With one arena a leak shows at once.
EXACT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}

# Name, function, how often at full length, and at least.
LONG = (
    ("frames", long_clip, FRAMES, 400),
    ("cycles", cycles, CYCLES, 50),
    ("clones", clones, 256, 16),
    ("determinism", determinism, 6, 2),
)


def soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long, about.")] = 15,
    parts: Annotated[
        list[str] | None, typer.Option("--part", help=f"What to do; may be repeated. All: {', '.join(PARTS)}.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for inputs that the fuzzers find.")] = Path("fuzzed"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Fuzz the readers and the clips' decoder, kill runs and fail their disk, and run long; print a table.

    From 15 minutes on the long runs are 20,000 frames and 500 Segmenters; below they are shorter in proportion, and
    what time is left goes to the fuzzers (two thirds) and the faults. Exit 1: a crash, a hang, growth or lost work.
    """
    check_extra("video")
    wanted = parts or PARTS
    if unknown := set(wanted) - set(PARTS):
        raise UsageError(f"--part: expected one of {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    began = time.monotonic()
    share = min(1.0, minutes / FULL)
    report: dict[str, Any] = {"machine": machine()}
    for name, work, full, least in LONG:
        if name in wanted:
            report[name] = in_fresh_process(work, max(least, int(share * full)), environment=EXACT)
    if "faults" in wanted:
        left = max(6.0, 60 * minutes - (time.monotonic() - began))
        report["faults"] = inject(left / 3 if "fuzzers" in wanted else left)
    if "fuzzers" in wanted:
        left = max(6.0, 60 * minutes - (time.monotonic() - began)) / (len(READERS) + 1)
        report["fuzzers"] = [fuzz_reader(name, left, output) for name in READERS]
        report["fuzzers"].append(fuzz_clips(left))
    report["minutes"] = round((time.monotonic() - began) / 60, 1)
    report["failed"] = _failed(report)
    typer.echo(json.dumps(report) if as_json else _table(report))
    raise typer.Exit(1 if report["failed"] else 0)


def fuzz_clips(seconds: float) -> dict[str, Any]:
    """Damage drawn clips and read them in child processes. A child that crashes is one line, and counted."""
    from threading import Event

    from runtime.errors import DiffSegError

    end = time.monotonic() + seconds
    draw = random.Random(5)
    counts = {"inputs": 0, "found": 0, "crashes": 0, "hangs": 0}
    with tempfile.TemporaryDirectory() as folder:
        seeds = [path.read_bytes() for path in Path(*make_inputs(Path(folder, "in"))).glob("*.mkv")][:1]
        path = Path(folder, "a.mkv")
        while time.monotonic() < end:
            path.write_bytes(mutate(draw.choice(seeds), seeds, draw))
            counts["inputs"] += 1
            lines: list[str] = []
            try:
                clip = open_clip(Source(path, Path("a"), "video"))
                try:
                    for _ in clip.read(Event()):
                        pass
                    lines = clip.lost
                finally:
                    clip.close()
            except DiffSegError as error:
                lines = [str(error)]
            except Exception:
                counts["found"] += 1
            counts["crashes"] += any("crashed" in line for line in lines)
            counts["hangs"] += any("no answer" in line for line in lines)
    return {"reader": "clips", "guided": False, **counts}


def _failed(report: dict[str, Any]) -> list[str]:
    failed = [f"{line['reader']}: findings" for line in report.get("fuzzers", []) if line["found"]]
    failed += [name for name, found in report.items() if isinstance(found, dict) and found.get("flat") is False]
    faults = report.get("faults", {"problems": [], "work lost": 0})
    return failed + faults["problems"][:20] + (["work was lost"] if faults["work lost"] else [])


def _table(report: dict[str, Any]) -> str:
    lines = [f"{report['machine']['cpu']}, {report['minutes']} minutes", "", "| what | figures |", "|---|---|"]
    for found in report.get("fuzzers", []):
        how = "guided by coverage" if found["guided"] else "random"
        contained = " in children" if found["reader"] == "clips" else ""
        lines.append(
            f"| fuzzed {found['reader']} ({how}) | {found['inputs']:,} inputs, {found['found']} findings, "
            f"{found['crashes']} crashes{contained}, {found['hangs']} hangs |"
        )
    if faults := report.get("faults"):
        kinds = {
            "killed": "killed",
            "full disk": "on a full disk",
            "full": "whose writes fail",
            "readonly": "read-only",
        }
        counted = ", ".join(f"{faults[name]} {what}" for name, what in kinds.items())
        lines.append(
            f"| runs, then resumed: {counted} | {len(faults['problems'])} problems, work lost = {faults['work lost']} |"
        )
    for name, what in (("frames", "frames of a clip"), ("cycles", "Segmenters opened and closed")):
        if found := report.get(name):
            lines.append(
                f"| {found[name]:,} {what} | {found['memory MB']} MB after the warm-up, {found['growth MB']:+} MB, "
                f"handles {found['handles']:+}, threads {found['threads']:+} |"
            )
    if found := report.get("clones"):
        lines.append(f"| {found['frames']} frames in eight threads with clones | {found['differ']} differ from one |")
    if found := report.get("determinism"):
        kinds_of = ", ".join(name for name in found if name not in ("frames", "differ", "flat"))
        lines.append(f"| {kinds_of}: four runs, 1 to 3 threads, alone and in batches | {found['differ']} differ |")
    return "\n".join([*lines, *(f"FAILED: {line}" for line in report["failed"])])


app = single_command(soak)

if __name__ == "__main__":
    run(app, "python -m tools.soak", "video")

"""Do the stages overlap, and what do they cost: `python -m tools.benchmark pipeline`."""

from __future__ import annotations

import json
import tempfile
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.merge.threads import usable_cores
from runtime.terminal import check_extra
from tools.benchmark.common import in_fresh_process, machine
from tools.benchmark.streams import (
    backends,
    copy_photographs,
    draw_clip,
    run_clip_with,
    run_network,
    run_photographs_with,
)

if TYPE_CHECKING:
    pass

SHARE = 0.85  # of the rate that the network or the processor allows
OVERLAP_RATIO = 1.15
MEMORY_RATIO = 1.05
SLEEP = 0.005  # seconds a frame, of the engine's stand-in


class Part(str, Enum):
    """What may be measured."""

    photographs = "photographs"
    stand_in = "stand-in"
    memory = "memory"
    clip = "clip"


def pipeline(
    parts: Annotated[list[Part] | None, typer.Option("--part", help="What to measure; may be repeated. All.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder of photographs; default: drawn scenes.")] = None,
    count: Annotated[int, typer.Option(min=10, help="Photographs; for memory also ten times as many.")] = 300,
    clip: Annotated[Path | None, typer.Option(help="A video of your own; default: a drawn one, 640x360.")] = None,
    frames: Annotated[int, typer.Option(min=10, help="Frames of the clip.")] = 200,
    every: Annotated[int, typer.Option(min=1, help="Of the clip the engine sees every Nth frame.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Do the stages overlap, and what do they cost? With the embedded engine, overlay and labels written.

    photographs: their rate against what the network, or the processor, allows (at least 0.85 of it), and processor
    time outside of the network. stand-in: an engine that sleeps 5 ms a frame (at most 1.15 times the longer of its
    sleep and the other stages' processor time over the cores). memory: for ten times as many photographs at most 5 %
    more. clip: frames a second from file to file, which is only reported.
    Exit 1: a bound is missed.
    """
    wanted = parts or list(Part)
    if Part.clip in wanted:
        check_extra("video")
    report: dict[str, Any] = {"machine": machine(), "cores": usable_cores()}
    with tempfile.TemporaryDirectory() as folder:
        if {Part.photographs, Part.stand_in} & set(wanted):
            pictures = copy_photographs(photos, Path(folder) / "photographs", count)
        if Part.photographs in wanted:
            report["photographs"] = [measure_photographs(backend, pictures) for backend in backends()]
        if Part.stand_in in wanted:
            report["stand_in"] = measure_stand_in(pictures, count)
        if Part.memory in wanted:
            report["memory"] = measure_memory(photos, Path(folder), count)
        if Part.clip in wanted:
            source = clip or draw_clip(Path(folder) / "clip.mp4", frames)
            report["clip"] = [in_fresh_process(run_clip_with, backend, str(source), every) for backend in backends()]
    report["missed"] = _missed(report)
    typer.echo(json.dumps(report)) if as_json else _print(report)
    raise typer.Exit(1 if report["missed"] else 0)


def measure_photographs(backend: str, pictures: Path) -> dict[str, Any]:
    """Rate, bound and processor time of one backend."""
    whole = in_fresh_process(run_photographs_with, backend, str(pictures), 0.0)
    network = in_fresh_process(run_network, backend)
    outside = in_fresh_process(run_photographs_with, "maps", str(pictures), 0.0)
    allowed = min(1 / network["seconds"], usable_cores() / whole["processor"])
    return {
        "backend": backend,
        "per_second": round(1 / whole["seconds"], 2),
        "network_per_second": round(1 / network["seconds"], 2),
        "processor_ms": round(1e3 * whole["processor"], 2),
        "outside_network_ms": round(1e3 * outside["processor"], 2),
        "ratio": round(1 / whole["seconds"] / allowed, 3),
    }


def measure_stand_in(pictures: Path, count: int) -> dict[str, Any]:
    """Time of the whole over the longer of the stand-in's sleep and the other stages' share of the processor."""
    whole = in_fresh_process(run_photographs_with, "labels", str(pictures), SLEEP)
    floor = max(SLEEP, whole["processor"] / usable_cores())
    return {
        "frames": count,
        "ms": round(1e3 * whole["seconds"], 2),
        "processor_ms": round(1e3 * whole["processor"], 2),
        "ratio": round(whole["seconds"] / floor, 3),
    }


def measure_memory(photos: Path | None, folder: Path, count: int) -> dict[str, Any]:
    """Peak memory in MB for `count` photographs and for ten times as many, with labels at once."""
    peaks = []
    for number in (count, 10 * count):
        pictures = copy_photographs(photos, folder / str(number), number)
        peaks.append(in_fresh_process(run_photographs_with, "labels", str(pictures), 0.0)["peak"])
    few, many = peaks
    return {"photographs": [count, 10 * count], "peak_mb": [round(few), round(many)], "ratio": round(many / few, 3)}


def _missed(report: dict[str, Any]) -> list[str]:
    missed = [
        f"photographs with {found['backend']}: {found['ratio']} of the rate allowed, at least {SHARE}"
        for found in report.get("photographs", [])
        if found["ratio"] < SHARE
    ]
    for name, bound in (("stand_in", OVERLAP_RATIO), ("memory", MEMORY_RATIO)):
        if name in report and report[name]["ratio"] > bound:
            missed.append(f"{name.replace('_', '-')}: {report[name]['ratio']}, at most {bound}")
    return missed


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console

    say = partial(Console(soft_wrap=True).print, highlight=False)
    say(f"{report['machine']['cpu']}, {report['cores']} to use")
    for found in report.get("photographs", []):
        say(
            f"photographs, {found['backend']}: {found['per_second']} a second, {found['ratio']} of what is allowed "
            f"(network alone {found['network_per_second']} a second; processor {found['processor_ms']} ms each, of "
            f"which outside of the network {found['outside_network_ms']})",
        )
    if found := report.get("stand_in"):
        say(
            f"stand-in: {found['ms']} ms a photograph, processor {found['processor_ms']} ms, {found['ratio']} times "
            f"the least (at most {OVERLAP_RATIO})",
        )
    if found := report.get("memory"):
        few, many = found["peak_mb"]
        say(f"memory: {few} MB and {many} MB for {found['photographs']} photographs")
    for found in report.get("clip", []):
        busy = ", ".join(f"{name} {share:.0%}" for name, share in found["busy"].items())
        say(f"clip, {found['backend']}: {found['per_second']} frames a second ({busy})")
    for line in report["missed"]:
        say(f"MISSED: {line}", style="bold red")

"""`python -m tools.benchmark core --device cuda`: the merge core on a GPU, by stage, against the card's limits.

Bytes and operations are counted from the shapes (formulas in runtime/native/README.md). Times are measured by CUDA
events around the stages, on maps that are already on the GPU.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from runtime.errors import DiffSegError
from tools.benchmark.common import GRID, core_pyramid

if TYPE_CHECKING:
    from runtime.native.library import Library


@dataclass(frozen=True, slots=True)
class Card:
    """Limits from a data sheet: bytes per second, TF32 and float16 operations per second, without sparsity.

    `multiprocessors`, `clock` in Hz: of the whole card, at which it has these rates.
    """

    bytes: float
    operations: float
    half: float
    multiprocessors: int
    clock: float


# Orin's figures are derived: float16 is half of its dense INT8 rate, TF32 half of that.
CARDS = {
    "H200": Card(4.8e12, 494e12, 989e12, 132, 1.83e9),
    "A100": Card(2.0e12, 156e12, 312e12, 108, 1.41e9),
    "L4": Card(0.3e12, 60e12, 121e12, 58, 2.04e9),
    "Orin": Card(0.2048e12, 21e12, 42e12, 16, 1.3e9),
}


@dataclass(frozen=True, slots=True)
class Loop:
    """Instructions of a warp for a slice of 16 elements of a sum, read from SASS: all, products, and of 16 bytes."""

    instructions: int
    products: int
    shared: int


LOOPS = {"divergence": Loop(188, 32, 22), "means": Loop(143, 32, 16)}
AGGREGATE = 4600  # instructions of a warp for 4 rows of 512 pixels each
BLOCK = 4  # slices that the start and the end of a block take, about
LAUNCHES, LAUNCH = 19, 2e-6  # of a frame with three iterations; seconds from the end of one to the start of the next


def count(
    sides: Sequence[int],
    proposals: int = 256,
    kept: int = 256,
    iterations: int = 3,
    labels: int = 512,
    size: int = 4,
    splits: int = 2,
) -> dict[str, tuple[float, float]]:
    """(bytes, tensor-core operations) of every stage for one frame.

    Args:
        sides: of the square resolutions, finest first.
        proposals: anchors.
        kept: proposals in each later iteration and at the end; all anchors are the most there can be.
        iterations: of the merge.
        labels: side of the labels.
        size: bytes of an element of the maps.
        splits: parts of a sum; how many follows from the card, 2 on an H200.
    """
    n = sides[0] ** 2
    maps = sum(side**4 for side in sides) * size
    cross = 2 * 4 * splits * proposals * n  # written by the product, read by what adds the parts
    later = iterations - 1
    return {
        "aggregate": (maps + 4 * n * n, 0),
        "divergence": (4 * n * n + cross, 4 * proposals * n * n),
        "means": (4 * n * n + 4 * proposals * n + cross, 4 * proposals * n * n),
        "later iterations": (later * 3 * 4 * kept * n, later * 8 * kept * kept * n),
        "labels": (4 * kept * n + labels * labels, 0),
    }


def least_milliseconds(stage: tuple[float, float], card: Card) -> float:
    """The least time of a stage: that of its bytes or of its operations, whichever is longer on the card."""
    return 1e3 * max(stage[0] / card.bytes, stage[1] / card.operations)


def loop_seconds(loop: Loop, slices: float, card: Card) -> float:
    """What a multiprocessor takes for slices of two blocks, of 8 warps each, by what it does most slowly.

    Its four schedulers start an instruction each per cycle, its shared memory gives 128 bytes, its tensor cores have
    their share of the card's rate.
    """
    per_cycle = card.operations / 2 / card.multiprocessors / card.clock
    cycles = max(loop.instructions * 8 / 4, loop.shared * 8 * 4, loop.products * 8 * 16 * 8 * 8 / per_cycle)
    return 2 * slices * cycles / card.clock


def rounds(tiles: int, slices: int, most: int, card: Card) -> float:
    """Slices that each place of the card works through, with as many parts as the core chooses (`Plan::splits`)."""
    places = 2 * card.multiprocessors
    found = [-(-tiles * parts // places) * (-(-slices // parts) + BLOCK) for parts in range(1, most + 1)]
    return float(min(found[: max(1, slices // 16)]))


def expected_milliseconds(card: Card, side: int = 64, kept: int = 64, iterations: int = 3) -> float:
    """The time of a frame, computed from the counts of instructions and the card's rates, not measured.

    `kept`: proposals in each later iteration. Every kernel takes the longer of its instructions and its bytes.
    """
    n, anchors = side * side, GRID * GRID
    counted = count([side, side // 2, side // 4, side // 8], anchors, kept, iterations)
    tiles, slices = -(-anchors // 128) * (n // 64), n // 16
    warps = n / 4 * 8 * max(1, n / 4096)
    aggregate = warps * AGGREGATE / (4 * card.multiprocessors * card.clock)
    seconds = max(aggregate, counted["aggregate"][0] / card.bytes)
    for stage, loop in LOOPS.items():
        seconds += max(loop_seconds(loop, rounds(tiles, slices, 5, card), card), counted[stage][0] / card.bytes)
    later = rounds(-(-kept // 128) * -(-kept // 64), slices, 16, card)
    means = rounds(-(-kept // 128) * (n // 64), max(1, kept // 16), 1, card)
    one = loop_seconds(LOOPS["divergence"], later, card) + loop_seconds(LOOPS["means"], means, card)
    seconds += max((iterations - 1) * one, counted["later iterations"][0] / card.bytes)
    return 1e3 * (seconds + counted["labels"][0] / card.bytes + LAUNCHES * LAUNCH)


def find_card(name: str) -> Card | None:
    """The limits of a device by its name; None for a card that is not listed."""
    words = name.replace("-", " ").split()
    return next((card for key, card in CARDS.items() if key in words), None)


def measure(library: Library, side: int, repeat: int, device: int = 0) -> dict[str, Any]:
    """Milliseconds per stage, the difference to the CPU core, and the share of the card's limits, as a report."""
    import numpy as np

    from runtime.merge.segment import segment_attention
    from runtime.native.core import Core
    from runtime.pyramid.config import MergeConfig
    from runtime.pyramid.weights import resolution_ratios

    pyramid, thresholds = core_pyramid(side)
    config, size = MergeConfig(thresholds, GRID), (side * 8, side * 8)
    shapes = [(round(len(level) ** 0.5),) * 2 for level in pyramid]
    core = Core(library, config, resolution_ratios("proportional", shapes), shapes, device=device)
    found = core(pyramid, 1, size)
    expected = segment_attention(pyramid, config, size=size)
    runs = core.profile(pyramid, 1, size, repeat + 3)[3:]  # the first ones warm the card up
    name, capability = library.device_name(device)
    card = find_card(name)
    sides = [shape[0] for shape in shapes]
    counted = count(sides, GRID**2, GRID**2, len(thresholds), size[0])
    stages: dict[str, Any] = {}
    for stage, (moved, operations) in counted.items():
        milliseconds = statistics.median(run[stage] for run in runs)
        entry = {"milliseconds": milliseconds, "bytes": moved, "operations": operations}
        if card and milliseconds > 0:
            entry["share"] = least_milliseconds((moved, operations), card) / milliseconds
        stages[stage] = entry
    return {
        "device": name,
        "capability": capability,
        "side": side,
        "repeat": repeat,
        "milliseconds": statistics.median(sum(run.values()) for run in runs),
        "stages": stages,
        "segments": int(found.segments[0]),
        "difference": float(np.mean(found.labels[0] != expected)),
        "workspace_mb": core.workspace_size / 1e6,
    }


def native_core(side: int, repeat: int, as_json: bool, device: str) -> None:
    """Print the time of every stage and its share of the card's limits. Exit 1: no GPU, or labels that differ."""
    from runtime import native

    try:
        number = native.device_number(device)
    except ValueError as error:
        raise DiffSegError(str(error)) from None
    report = measure(native.load(number), side, max(repeat, 20), number)
    typer.echo(json.dumps(report)) if as_json else print_native(report)
    raise typer.Exit(1 if report["difference"] > 0.001 else 0)


def print_native(report: dict[str, Any]) -> None:
    """The report of `measure` as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"Merge core at {report['side']}x{report['side']} on {report['device']}")
    for column in ("stage", "ms", "MB", "GFLOP", "share of the card's limit"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, entry in report["stages"].items():
        share = f"{entry['share']:.0%}" if "share" in entry else "card not listed"
        row = f"{entry['milliseconds']:.3f}", f"{entry['bytes'] / 1e6:.1f}", f"{entry['operations'] / 1e9:.1f}", share
        table.add_row(stage, *row)
    console.print(table)
    console.print(f"in all        {report['milliseconds']:.3f} ms, median of {report['repeat']}", highlight=False)
    console.print(f"labels differ {report['difference']:.4%} of the pixels from the CPU core", highlight=False)

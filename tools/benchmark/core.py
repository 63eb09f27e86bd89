"""`python -m tools.benchmark core`: the merge core against elementwise KL in NumPy, and against its own products.

Each figure is the ratio of two programs that take turns in one run, so that it holds on another machine. They run on
one core and are timed by its processor time, which other work on the machine disturbs least.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.errors import UsageError
from tools.benchmark.common import GRID, core_pyramid, in_fresh_process, machine, resident, say, timed
from tools.benchmark.elementwise import core_elementwise
from tools.benchmark.products import PRODUCTS_RATIO, PRODUCTS_SIDE, photo_pyramids, products_ratio

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tools.benchmark.common import Maps

CORE_RATIO, CORE_MEMORY_MB, CORE_DIFFERENCE = 40.0, 300.0, 0.001


def core(
    side: Annotated[int, typer.Option(min=16, help="Side of the finest resolution; the budget is set at 64.")] = 64,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each program, taking turns.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    device: Annotated[str, typer.Option(help="cpu, or cuda[:N]: time per stage against the card's limits.")] = "cpu",
) -> None:
    """CPU merge core against elementwise KL in NumPy and against its own products, from pyramid to labels, on one core.

    Exit 1: a budget is missed, or the two disagree on more than 0.1 % of the pixels.
    """
    if device != "cpu":
        from tools.benchmark.native import native_core

        native_core(side, repeat, as_json, device)
    if side % 8:
        raise UsageError(f"--side: expected a multiple of 8, for four resolutions; found {side}")
    import cv2
    import numpy as np
    from threadpoolctl import threadpool_limits

    pyramid, thresholds = core_pyramid(side)
    size = (side * 8, side * 8)
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # the merge's own threads look here
    try:
        with threadpool_limits(1):
            runs: list[dict[str, Any]] = []
            core_ours(pyramid, thresholds, size)  # warm-up; the other program's cost of a first run is nothing
            for index in range(repeat):
                say(f"run {index + 1} of {repeat} …")
                # Ours is so short that one run would be mostly chance.
                ours_runs = [core_ours(pyramid, thresholds, size) for _ in range(5)]
                ours = ours_runs[0][0]
                our_stages = {
                    stage: statistics.median(stages[stage] for _, stages in ours_runs) for stage in ours_runs[0][1]
                }
                plain, plain_stages = core_elementwise(pyramid, thresholds, size)
                runs.append(
                    {
                        "ours": our_stages,
                        "elementwise": plain_stages,
                        "ratio": plain_stages["total"] / our_stages["total"],
                        "difference": float(np.mean(ours != plain)),
                    }
                )
            products = products_by_input(pyramid, thresholds, side, 10 * repeat)
    finally:
        cv2.setNumThreads(before)

    ratios = [run["ratio"] for run in runs]
    report: dict[str, Any] = {
        "machine": machine(),
        "side": side,
        "repeat": repeat,
        "seconds": {
            name: {stage: statistics.median(run[name][stage] for run in runs) for stage in runs[0][name]}
            for name in ("ours", "elementwise")
        },
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        "difference": max(run["difference"] for run in runs),
        "memory_mb": core_memory(pyramid, thresholds, size),
        "products": products,
        "budget": {
            "ratio": CORE_RATIO,
            "memory_mb": CORE_MEMORY_MB,
            "difference": CORE_DIFFERENCE,
            "products": PRODUCTS_RATIO,
        },
    }
    missed = []
    if report["difference"] > CORE_DIFFERENCE:
        missed.append(f"labels differ in {report['difference']:.2%} of the pixels, allowed {CORE_DIFFERENCE:.1%}")
    if side == 64 and report["ratio"] < CORE_RATIO:
        missed.append(f"{report['ratio']:.1f} times faster, wanted {CORE_RATIO:.0f}")
    if side == 64 and (report["memory_mb"] or 0) > CORE_MEMORY_MB:
        missed.append(f"{report['memory_mb']:.0f} MB beyond the input, allowed {CORE_MEMORY_MB:.0f}")
    typical = statistics.median(found["ratio"] for found in products.values())
    if side == PRODUCTS_SIDE and typical > PRODUCTS_RATIO:
        missed.append(f"{typical:.2f} times the products' time, allowed {PRODUCTS_RATIO}")
    report["missed"] = missed
    if as_json:
        typer.echo(json.dumps(report))
    else:
        print_core(report)
    raise typer.Exit(1 if missed else 0)


def products_by_input(
    pyramid: list[Maps], thresholds: tuple[float, ...], side: int, repeat: int
) -> dict[str, dict[str, float]]:
    """See `products_ratio`: for the sample maps and, at the embedded engine's side, for its maps of photographs."""
    inputs = {"sample": (pyramid, thresholds)}
    if side == PRODUCTS_SIDE:
        inputs |= photo_pyramids()
    size = (side * 8, side * 8)
    return {name: products_ratio(*maps, size, repeat) for name, maps in inputs.items()}


def core_ours(
    pyramid: list[Maps], thresholds: tuple[float, ...], size: tuple[int, int]
) -> tuple[NDArray[np.int32], dict[str, float]]:
    """Labels and seconds by stage of runtime.merge.

    The stages are called apart, on an aggregated attention that exists as a whole; the total is that of
    `segment_attention`, which makes it in tiles, and so is less than their sum.
    """
    from runtime.merge.aggregate import aggregate_attention
    from runtime.merge.proposals import merge_attention
    from runtime.merge.segment import segment_attention
    from runtime.merge.suppress import suppress
    from runtime.pyramid.config import MergeConfig

    config = MergeConfig(thresholds, GRID)
    labels, total = timed(lambda: segment_attention(pyramid, config, size=size))
    side = round(len(pyramid[0]) ** 0.5)
    aggregated, aggregate = timed(lambda: aggregate_attention(pyramid))
    _, first = timed(lambda: merge_attention(aggregated, MergeConfig(thresholds[:1], GRID), (side, side)))
    proposals, merge = timed(lambda: merge_attention(aggregated, config, (side, side)))
    _, nms = timed(lambda: suppress(proposals, (side, side), size))
    return labels, {
        "aggregate": aggregate,
        "iteration 0": first,
        "later iterations": max(merge - first, 0.0),
        "suppress": nms,
        "total": total,
    }


def core_memory(pyramid: list[Maps], thresholds: tuple[float, ...], size: tuple[int, int]) -> float | None:
    """Peak resident MB of one call beyond its input, in a process of its own; None where Linux's /proc is absent.

    Resident memory counts what OpenCV and the BLAS allocate too, which tracemalloc does not see. A tiny call comes
    first, so that libraries and their buffers are loaded and count as neither.
    """
    import numpy as np

    if not Path("/proc/self/status").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "pyramid.npz"), *pyramid)
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return float(in_fresh_process(measure_memory, folder, thresholds, size, environment=one_thread))


def measure_memory(folder: str, thresholds: list[float], size: list[int]) -> float:
    """Peak resident MB of one merge of the maps in `folder`/pyramid.npz, beyond these maps."""
    import numpy as np

    from runtime.merge.segment import segment_attention
    from runtime.pyramid.config import MergeConfig

    with np.load(Path(folder, "pyramid.npz")) as data:
        pyramid = [data[name] for name in data.files]
    segment_attention([np.full((256, 256), 1 / 256, np.float32)], MergeConfig(grid=GRID), size=(32, 32))
    before = resident("VmRSS")
    segment_attention(pyramid, MergeConfig(tuple(thresholds), GRID), size=(size[0], size[1]))
    return resident("VmHWM") - before


def print_core(report: dict[str, Any]) -> None:
    """The report of `core` as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"Merge core at {report['side']}x{report['side']}, one core, median of {report['repeat']}")
    table.add_column("program")
    table.add_column("stage")
    table.add_column("processor seconds", justify="right")
    for name, stages in report["seconds"].items():
        for stage, seconds in stages.items():
            table.add_row(name, stage, f"{seconds:.4f}", end_section=stage == "total")
    table.caption = "Our stages are called apart; our total is one call, which shares work between them."
    console.print(table)
    table = Table(title="The merge against its own matrix products, milliseconds of processor time, medians")
    for heading in ("maps", "products", "GFLOP", "their ms", "whole ms", "ratio"):
        table.add_column(heading, justify="left" if heading == "maps" else "right")
    for name, found in report["products"].items():
        figures = (f"{found[key]:.2f}" for key in ("gflop", "products_ms", "total_ms", "ratio"))
        table.add_row(name, str(found["products"]), *figures)
    console.print(table)
    low, high = report["ratio_spread"]
    memory = "not measured (needs Linux)" if report["memory_mb"] is None else f"{report['memory_mb']:.0f} MB"
    console.print(f"ratio         {report['ratio']:.1f}  ({low:.1f} to {high:.1f})", highlight=False)
    console.print(f"labels differ {report['difference']:.4%} of the pixels", highlight=False)
    console.print(f"peak memory   {memory} beyond the input", highlight=False)
    for key, value in report["machine"].items():
        console.print(f"{key:13} {value}", highlight=False)
    if report["missed"]:
        console.print("MISSED: " + "; ".join(report["missed"]), style="bold red", highlight=False)
    elif report["side"] in (PRODUCTS_SIDE, 64):
        console.print("Within budget", style="green")
    else:
        console.print("Labels agree; budgets are set at sides of 32 and 64", style="green")

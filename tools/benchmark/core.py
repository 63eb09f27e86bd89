"""Measure DiffSeg against its budgets: ``python -m tools.benchmark core``.

Figures are ratios of two programs that take turns in one run, so that they hold on another machine. Programs
that run on one core are timed by its processor time, which other work on the machine disturbs least.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.benchmark.export import export
from tools.benchmark.frame import frame
from tools.benchmark.pipeline import pipeline
from tools.benchmark.plan import plan
from tools.benchmark.scaling import scaling
from tools.benchmark.video import video

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    Maps = NDArray[np.float32]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(export)
app.command()(frame)
app.command()(scaling)
app.command()(video)
app.command()(pipeline)
app.command()(plan)

REFERENCE = Path(__file__).parents[2] / "tests" / "data" / "reference_0.npz"
CORE_RATIO, CORE_MEMORY_MB, CORE_DIFFERENCE = 40.0, 300.0, 0.001
GRID = 16


@app.callback()
def main() -> None:
    """Measure DiffSeg against its budgets."""


@app.command()
def core(
    side: Annotated[int, typer.Option(min=16, help="Side of the finest resolution; the budget is set at 64.")] = 64,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each program, taking turns.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    device: Annotated[str, typer.Option(help="cpu, or cuda[:N]: time per stage against the card's limits.")] = "cpu",
) -> None:
    """CPU merge core against elementwise KL in NumPy, from pyramid to labels, on one core.

    Exit 1: a budget is missed, or the two disagree on more than 0.1 % of the pixels.
    """
    if device != "cpu":
        from tools.benchmark.native import native_core

        native_core(side, repeat, as_json, device)
    if side % 8:
        raise typer.BadParameter(f"--side: expected a multiple of 8, found {side}; four resolutions, each half as fine")
    import cv2
    import numpy as np

    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        typer.echo("threadpoolctl is needed to hold the BLAS to one core: pip install threadpoolctl", err=True)
        raise typer.Exit(2) from None

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
                print(f"run {index + 1} of {repeat} …", file=sys.stderr)
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
        "budget": {"ratio": CORE_RATIO, "memory_mb": CORE_MEMORY_MB, "difference": CORE_DIFFERENCE},
    }
    missed = []
    if report["difference"] > CORE_DIFFERENCE:
        missed.append(f"labels differ in {report['difference']:.2%} of the pixels, allowed {CORE_DIFFERENCE:.1%}")
    if side == 64 and report["ratio"] < CORE_RATIO:
        missed.append(f"{report['ratio']:.1f} times faster, wanted {CORE_RATIO:.0f}")
    if side == 64 and (report["memory_mb"] or 0) > CORE_MEMORY_MB:
        missed.append(f"{report['memory_mb']:.0f} MB beyond the input, allowed {CORE_MEMORY_MB:.0f}")
    report["missed"] = missed
    if as_json:
        typer.echo(json.dumps(report))
    else:
        print_core(report)
    raise typer.Exit(1 if missed else 0)


def core_pyramid(side: int) -> tuple[list[Maps], tuple[float, ...]]:
    """Attention maps like a network's, and thresholds that give some ten to twenty segments.

    At a side of 64 the features are those of a reference vector, where there is one; otherwise they are drawn:
    a smooth picture of few colours, at four resolutions.
    """
    import numpy as np

    features: list[NDArray[np.float64]]
    if side == 64 and REFERENCE.exists():
        with np.load(REFERENCE) as data:
            features = [data[name].astype(np.float64) for name in ("q64", "q32", "q16", "q8")]
            thresholds = tuple(float(threshold) for threshold in data["thresholds"])
    else:
        import cv2

        rng = np.random.default_rng(0)
        y, x = np.mgrid[:side, :side] / side
        seeds = rng.random((12, 2))
        region = np.argmin([(y - sy) ** 2 + (x - sx) ** 2 for sy, sx in seeds], axis=0)
        picture = 1.5 * rng.normal(size=(12, 6))[region] + 0.1 * rng.normal(size=(side, side, 6))
        features = []
        for level in (side, side // 2, side // 4, side // 8):
            small = cv2.resize(picture, (level, level), interpolation=cv2.INTER_AREA).reshape(level * level, 6)
            features.append(np.stack([small, 0.8 * small]))
        thresholds = (0.3, 0.3, 0.3)
    pyramid = []
    for heads in features:
        maps = np.zeros((heads.shape[1], heads.shape[1]))
        for head in heads:
            half = 0.5 * (head * head).sum(axis=1)
            weight = np.exp(head @ head.T - half[:, None] - half)
            maps += weight / weight.sum(axis=1, keepdims=True)
        pyramid.append((maps / len(heads)).astype(np.float32))
    return pyramid, thresholds


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


def core_elementwise(
    pyramid: list[Maps], thresholds: tuple[float, ...], size: tuple[int, int]
) -> tuple[NDArray[np.int32], dict[str, float]]:
    """DiffSeg as NumPy is usually written: whole arrays, one anchor against all maps at a time.

    Logarithms are taken once and the two large temporaries are used again; divergences are elementwise.
    """
    import cv2
    import numpy as np

    start = time.process_time()
    side = round(len(pyramid[0]) ** 0.5)
    n = side * side
    sides = [round(len(level) ** 0.5) for level in pyramid]
    maps = np.zeros((side, side, n), np.float32)
    for level, small in zip(pyramid, sides, strict=True):
        if small == side:
            full = level / level.sum(axis=1, keepdims=True)
        else:
            full = np.stack([cv2.resize(row.reshape(small, small), (side, side)).ravel() for row in level])
            full /= full.sum(axis=1, keepdims=True)
        full *= small / sum(sides)
        factor = side // small
        # Rows are replicated by broadcasting, which is faster than two np.repeat.
        maps.reshape(small, factor, small, factor, n)[...] += full.reshape(small, 1, small, 1, n)
    maps = maps.reshape(n, n)
    aggregated = time.process_time()

    logs = np.log(np.maximum(maps, 1e-12))
    quotient, product = np.empty_like(maps), np.empty_like(maps)

    def divergence(index: int, maps: Maps, logs: Maps) -> Maps:
        q, p = quotient[: len(maps)], product[: len(maps)]
        np.subtract(logs[index], logs, out=q)
        forward = np.multiply(maps[index], q, out=p).sum(axis=1)
        return 0.5 * forward - 0.5 * np.multiply(maps, q, out=p).sum(axis=1)

    step = (side - 1) // (GRID - 1)
    axis = (side - 1 - step * (GRID - 1)) // 2 + step * np.arange(GRID)
    members = [divergence(anchor, maps, logs) < thresholds[0] for anchor in (axis[:, None] * side + axis).ravel()]
    compared = time.process_time()
    proposals = np.stack([maps[member].mean(axis=0) for member in members])
    averaged = time.process_time()

    for threshold in thresholds[1:]:
        logs = np.log(np.maximum(proposals, 1e-12))
        claimed = np.zeros(len(proposals), bool)
        merged = []
        for index in range(len(proposals)):
            if not claimed[index]:
                member = divergence(index, proposals, logs) < threshold
                merged.append(proposals[member].mean(axis=0))
                claimed |= member
        proposals = np.stack(merged)
    iterated = time.process_time()

    upsampled = np.stack([cv2.resize(proposal.reshape(side, side), size[::-1]) for proposal in proposals])
    labels = upsampled.argmax(axis=0).astype(np.int32)
    end = time.process_time()
    return labels, {
        "aggregate": aggregated - start,
        "KL of iteration 0": compared - aggregated,
        "means of iteration 0": averaged - compared,
        "later iterations": iterated - averaged,
        "suppress": end - iterated,
        "total": end - start,
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
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        arguments = json.dumps({"folder": folder, "thresholds": thresholds, "size": size})
        done = subprocess.run(
            [sys.executable, "-c", "from tools.benchmark import _memory_child; _memory_child()", arguments],
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"measuring the memory failed:\n{done.stderr}")
    return float(done.stdout)


def _memory_child() -> None:
    import numpy as np

    from runtime.merge.segment import segment_attention
    from runtime.pyramid.config import MergeConfig

    arguments = json.loads(sys.argv[1])
    with np.load(Path(arguments["folder"], "pyramid.npz")) as data:
        pyramid = [data[name] for name in data.files]
    segment_attention([np.full((256, 256), 1 / 256, np.float32)], MergeConfig(grid=GRID), size=(32, 32))
    before = resident("VmRSS")
    size = (arguments["size"][0], arguments["size"][1])
    segment_attention(pyramid, MergeConfig(tuple(arguments["thresholds"]), GRID), size=size)
    print(resident("VmHWM") - before)


def resident(field: str) -> float:
    """A field of /proc/self/status in MB. The high-water mark of getrusage would include the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The value of a call, and its seconds of processor time."""
    start = time.process_time()
    value = call()
    return value, time.process_time() - start


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    import cv2
    import numpy as np

    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    blas = "unknown"
    try:
        from threadpoolctl import threadpool_info

        # OpenCV brings a BLAS of its own, which plays no part.
        pools = [
            pool
            for pool in threadpool_info()
            if pool.get("user_api") == "blas" and "numpy" in str(pool.get("filepath"))
        ]
        if pools:
            blas = " ".join(str(pools[0].get(key, "")) for key in ("internal_api", "version", "architecture"))
    except ImportError:
        pass
    return {
        "cpu": f"{model}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "blas": blas,
    }


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
            table.add_row(name, stage, f"{seconds:.3f}", end_section=stage == "total")
    table.caption = "Our stages are called apart; our total is one call, which shares work between them."
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
    elif report["side"] == 64:
        console.print("Within budget", style="green")
    else:
        console.print("Labels agree; the budget is set at a side of 64", style="green")

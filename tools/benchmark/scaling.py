"""`python -m tools.benchmark scaling`: time and memory against image size, grid of anchors, and frames per call."""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.errors import UsageError
from tools.benchmark.common import check_options, core_pyramid, in_fresh_process, machine, resident, say
from tools.benchmark.peers import PEERS, make_engine


def scaling(
    model: Annotated[str, typer.Option(help="Diffusers folder; random weights if left out.")] = "",
    family: Annotated[str, typer.Option(help="Shape of the random weights: small, sd15 ...")] = "small",
    peer: Annotated[str, typer.Option(help="Program: " + ", ".join(list(PEERS)[1:]) + ".")] = "onnxruntime",
    sizes: Annotated[str, typer.Option(help="Sides of the frame in pixels, with commas.")] = "256,384,512,768,1024",
    grids: Annotated[str, typer.Option(help="Anchors per axis, merged at 64x64.")] = "8,16,24,32",
    batches: Annotated[str, typer.Option(help="Frames per call, at the smallest of the sizes.")] = "1,2,4,8",
    threads: Annotated[int, typer.Option(min=1, help="Of the network.")] = 1,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each; medians.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write the curves as a PNG.")] = None,
) -> None:
    """Time and memory against the size of frames, the grid of anchors and the batch; an empty list leaves one out."""
    wanted = {
        "size": _numbers("--sizes", sizes, 1),
        "grid": _numbers("--grids", grids, 2),
        "batch": _numbers("--batches", batches, 1),
    }
    if not any(wanted.values()):
        raise UsageError("expected --sizes, --grids or --batches, found all three empty")
    if peer not in PEERS or PEERS[peer].engine is None:
        raise UsageError(f"--peer: expected one of {', '.join(list(PEERS)[1:])}, found {peer}")
    check_options(model, family, plot)
    curves: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if not model and (wanted["size"] or wanted["batch"]):
            from tools.tiny.random_pipelines import save_random_pipeline

            model = str(save_random_pipeline(folder / family, family))
        for axis, values in wanted.items():
            curves[axis] = []
            for value in values:
                say(f"{axis} {value} …")
                if axis == "grid":
                    point = in_fresh_process(measure_grid, value, repeat)
                else:
                    side, batch = (value, 1) if axis == "size" else (min(wanted["size"] or [256]), value)
                    point = in_fresh_process(measure_network, model, peer, side, batch, threads, repeat)
                curves[axis].append({"value": value, **point})
    report = {"machine": machine(), "model": model, "peer": peer, "threads": threads, "curves": curves}
    print(json.dumps(report)) if as_json else print_scaling(report)
    if plot:
        draw(report, plot)


def measure_network(model: str, peer: str, side: int, batch: int, threads: int, repeat: int) -> dict[str, float]:
    """Export for a size and batch, and measure seconds of network and merge per frame, and peak memory in MB."""
    import numpy as np

    from export.check.maps import random_frame
    from runtime.merge.segment import segment_attention
    from runtime.segmenter import Segmenter

    chosen = PEERS[peer]
    with tempfile.TemporaryDirectory() as folder:
        engine = str(Path(folder) / "engine.onnx")
        # In a process of its own, whose memory does not count.
        in_fresh_process(make_engine, model, engine, {**(chosen.engine or {}), "batch": batch}, side)
        options = {"threads": threads, **chosen.options}
        segmenter = Segmenter.open(engine, "cpu", backend=chosen.backend, options=options)
        frames = np.stack([random_frame(side, side, seed) for seed in range(batch)])
        grids = [(level.height, level.width) for level in segmenter.engine.spec.levels]
        _forget_peak()
        before = resident("VmRSS")
        network, merge = [], []
        for _ in range(repeat + 1):  # the first one warms up
            times = [time.process_time()]
            maps = segmenter.engine.infer(frames)
            times.append(time.process_time())
            if len(maps) == len(grids):
                segment_attention(maps, segmenter.config, size=(side, side), grids=grids)
            times.append(time.process_time())
            network.append(times[1] - times[0])
            merge.append(times[2] - times[1])
        memory = resident("VmHWM") - before
    return {
        "network": statistics.median(network[1:]) / batch,
        "merge": statistics.median(merge[1:]) / batch,
        "memory_mb": memory,
    }


def measure_grid(grid: int, repeat: int) -> dict[str, float]:
    """Seconds and peak memory in MB of the merge at 64×64 with `grid` × `grid` anchors."""
    from runtime.merge.segment import segment_attention
    from runtime.pyramid.config import MergeConfig

    pyramid, thresholds = core_pyramid(64)
    segment_attention(pyramid, MergeConfig(thresholds, 2), size=(64, 64))
    _forget_peak()
    before, times = resident("VmRSS"), []
    for _ in range(repeat):
        start = time.process_time()
        segment_attention(pyramid, MergeConfig(thresholds, grid), size=(512, 512))
        times.append(time.process_time() - start)
    return {"merge": statistics.median(times), "memory_mb": max(resident("VmHWM") - before, 0.0)}


def _forget_peak() -> None:
    """Reset the high-water mark of resident memory, which building the input has raised. Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _numbers(option: str, text: str, least: int) -> list[int]:
    with contextlib.suppress(ValueError):
        numbers = [int(word) for word in text.split(",") if word.strip()]
        if min(numbers, default=least) >= least:
            return numbers
    raise UsageError(f"{option}: expected whole numbers with commas, at least {least}, found {text!r}")


def print_scaling(report: dict[str, Any]) -> None:
    """One table per curve."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for axis, points in report["curves"].items():
        if not points:
            continue
        table = Table(title=f"against {axis}: {report['peer'] if axis != 'grid' else 'merge at 64x64'}", box=None)
        for column in points[0]:
            table.add_column(axis if column == "value" else column, justify="right")
        for point in points:
            table.add_row(*(f"{value:g}" if name == "value" else f"{value:.3f}" for name, value in point.items()))
        console.print(table)
    console.print(f"processor seconds per frame; {report['machine']['cpu']}", highlight=False)


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the curves as a PNG: seconds on the left axis, memory on the right one, a panel per variable."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = {axis: points for axis, points in report["curves"].items() if points}
    figure, panels = pyplot.subplots(
        1, len(curves), figsize=(4.5 * len(curves), 3.4), layout="constrained", squeeze=False
    )
    labels = {"size": "side of the frame, pixels", "grid": "anchors per axis", "batch": "frames per call"}
    for panel, (axis, points) in zip(panels[0], curves.items(), strict=True):
        x = [point["value"] for point in points]
        for name, colour in (("network", "#3b6ea5"), ("merge", "#c7702b")):
            if name in points[0]:
                panel.plot(x, [point[name] for point in points], "o-", color=colour, label=f"{name}, s")
        panel.set_xlabel(labels[axis])
        panel.set_xticks(x)
        panel.set_ylim(bottom=0)
        memory = panel.twinx()
        memory.plot(x, [point["memory_mb"] for point in points], "s--", color="#888888", label="memory, MB")
        memory.set_ylim(bottom=0)
        lines = [*panel.get_lines(), *memory.get_lines()]
        panel.legend(lines, [line.get_label() for line in lines], fontsize=8)
    panels[0][0].set_ylabel("processor seconds per frame")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

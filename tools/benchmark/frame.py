"""`python -m tools.benchmark frame`: one frame to labels, program against program, and against the machine's peak.

The programs take turns, round by round. With one thread the figures are processor time, which other work on the machine
disturbs least.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.errors import UsageError
from runtime.terminal import check_packages
from tools.benchmark.common import check_options, in_fresh_process, machine, say
from tools.benchmark.peers import PEERS, make_engine, measure_peak, measure_peer


def frame(
    model: Annotated[str, typer.Option(help="Diffusers folder; random weights if left out.")] = "",
    family: Annotated[str, typer.Option(help="Shape of the random weights: small, sd15, sd21, sdxl ...")] = "sd15",
    peers: Annotated[str, typer.Option(help="Programs, with commas: " + ", ".join(PEERS) + ".")] = "eager,"
    "onnxruntime,openvino-fp32,openvino-bf16,openvino-labels,openvino-half,openvino-taesd,openvino-up",
    size: Annotated[int, typer.Option(help="Side of the frame in pixels; 0: the model's own.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Of every program; 0: all cores.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds.")] = 3,
    keep: Annotated[Path | None, typer.Option(help="Folder where exported engines stay for the next run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write the times as a PNG.")] = None,
) -> None:
    """Frame to labels on a CPU: PyTorch eager, ONNX Runtime and OpenVINO side by side, taking turns."""
    chosen = [name.strip() for name in peers.split(",")]
    unknown = [name for name in chosen if name not in PEERS]
    if unknown:
        raise UsageError(f"--peers: expected some of {', '.join(PEERS)}, found {', '.join(unknown)}")
    check_options(model, family, plot)
    check_packages(*(PEERS[name].backend for name in chosen if PEERS[name].backend))
    threads = threads or os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not model:
            model = str(folder / family)
            if not Path(model).exists():
                from tools.tiny.random_pipelines import save_random_pipeline

                say(f"writing random weights in the shape of {family} …")
                save_random_pipeline(Path(model), family)
        engines = {}
        for name in chosen:
            wanted = PEERS[name].engine
            if wanted is not None:
                options = "_".join(f"{option}-{value}" for option, value in wanted.items()) or "plain"
                engines[name] = folder / f"{options}-{size}.onnx"
                if not engines[name].exists():
                    say(f"exporting {engines[name].name} …")
                    in_fresh_process(make_engine, model, str(engines[name]), wanted, size)
        rounds = []
        for index in range(repeat):
            say(f"round {index + 1} of {repeat} …")
            found: dict[str, Any] = {"peak": in_fresh_process(measure_peak, threads)}
            for name in chosen:
                labels = str(Path(temporary) / f"{name}.npy")
                engine = str(engines.get(name, ""))
                found[name] = in_fresh_process(measure_peer, name, model, engine, size, threads, labels)
                done = found[name]
                say(
                    f"  {PEERS[name].title}: {done['wall']:.2f} s, {done['processor']:.2f} s of processor time, "
                    f"{done['memory_gb']:.1f} GB"
                )
            rounds.append(found)
        report = summarize(rounds, chosen, threads, Path(temporary))
    print(json.dumps(report)) if as_json else print_frame(report)
    if plot:
        draw(report, plot)


def summarize(rounds: list[dict[str, Any]], chosen: list[str], threads: int, folder: Path) -> dict[str, Any]:
    """The report: per program the median and spread of its seconds, and its ratio to and agreement with the first.

    `rounds`: what `measure_peak` ("peak") and `measure_peer` (a program's name) returned in each round. `folder`: holds
    the labels of every program as NAME.npy.
    """
    import numpy as np

    from export.check.agreement import matched_agreement

    clock = "processor" if threads == 1 else "wall"
    peaks = {kind: statistics.median(r["peak"][kind] for r in rounds) for kind in rounds[0]["peak"]}
    reference = np.load(folder / f"{chosen[0]}.npy")
    programs = {}
    for name in chosen:
        times = [r[name][clock] for r in rounds]
        flops = rounds[0][name]["flops"]
        seconds = statistics.median(times)
        programs[name] = {
            "title": PEERS[name].title,
            "seconds": seconds,
            "spread": [min(times), max(times)],
            "ratio": statistics.median(r[chosen[0]][clock] / r[name][clock] for r in rounds),
            "merge_seconds": statistics.median(r[name]["merge"] for r in rounds),
            "load_seconds": statistics.median(r[name]["load"] for r in rounds),
            "peak_memory_gb": max(r[name]["memory_gb"] for r in rounds),
            "tflop": flops / 1e12,
            "over_floor": seconds * peaks[PEERS[name].peak] / flops if flops else None,
            "agreement": matched_agreement(np.load(folder / f"{name}.npy"), reference),
        }
    return {
        "machine": machine(),
        "threads": threads,
        "clock": clock,
        "rounds": len(rounds),
        "peak_flops": peaks,
        "programs": programs,
    }


def print_frame(report: dict[str, Any]) -> None:
    """The report as a table."""
    from rich.console import Console
    from rich.table import Table

    plural = "" if report["threads"] == 1 else "s"
    table = Table(title=f"frame → labels, {report['threads']} thread{plural}, {report['machine']['cpu']}", box=None)
    for column in ("program", f"{report['clock']} s", "spread", "ratio", "merge, s", "memory, GB", "× floor", "agrees"):
        table.add_column(column, justify="left" if column == "program" else "right", no_wrap=column != "program")
    for row in report["programs"].values():
        low, high = row["spread"]
        table.add_row(
            row["title"],
            f"{row['seconds']:.2f}",
            f"{low:.2f}–{high:.2f}",
            f"{row['ratio']:.1f}",
            f"{row['merge_seconds']:.2f}",
            f"{row['peak_memory_gb']:.1f}",
            f"{row['over_floor']:.2f}" if row["over_floor"] else "",
            f"{row['agreement']:.1%}",
        )
    console = Console()
    if not console.is_terminal:  # a file holds lines of any length
        console = Console(width=120)
    console.print(table)
    peaks = ", ".join(f"{kind} {value / 1e9:.0f} GFLOP/s" for kind, value in report["peak_flops"].items())
    console.print(f"matrix product: {peaks}; medians of {report['rounds']} rounds; ratio and agreement: to the first")


def draw(report: dict[str, Any], path: Path) -> None:
    """Bars of seconds, one per program."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = list(report["programs"].values())[::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(rows) + 1), layout="constrained")
    bars = axes.barh([row["title"] for row in rows], [row["seconds"] for row in rows], color="#3b6ea5")
    axes.bar_label(bars, [f"{row['seconds']:.2f} s" for row in rows], padding=3)
    axes.set_xlabel(f"{report['clock']} seconds per frame, {report['threads']} thread(s)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

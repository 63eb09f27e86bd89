"""`python -m tools.benchmark frame`: one frame to labels, program against program, and against the machine's peak.

Every program runs in a process of its own, for their memory adds up and is never given back; the programs take turns,
round by round. With one thread the figures are processor time, which other work on the machine disturbs least.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from tools.benchmark.export import child

MODULE = "tools.benchmark.frame"  # what its fresh processes import
PRODUCT = 2048  # side of the matrices whose product gives the machine's peak


@dataclass(frozen=True, slots=True)
class Peer:
    """A program to measure. `engine`: the options of its export, None for PyTorch; `options`: of the backend."""

    title: str
    engine: dict[str, Any] | None = None
    backend: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    peak: str = "fp32"


FP32, BF16 = {"precision": "fp32"}, {"precision": "bf16"}
CPU = {"target": "cpu"}
HALF = {**CPU, "precision": "bf16"}
PEERS = {
    "eager": Peer("PyTorch eager fp32, elementwise merge"),
    "onnxruntime": Peer("ONNX Runtime fp32", {}, "onnxruntime"),
    "onnxruntime-cpu": Peer("ONNX Runtime fp32, --target cpu", CPU, "onnxruntime"),
    "openvino-fp32": Peer("OpenVINO fp32", {}, "openvino", FP32),
    "openvino-bf16": Peer("OpenVINO bf16", {}, "openvino", BF16, "bf16"),
    "openvino-cpu": Peer("OpenVINO bf16, --target cpu", CPU, "openvino", BF16, "bf16"),
    "openvino-labels": Peer("OpenVINO bf16, --head labels", {"head": "labels"}, "openvino", BF16, "bf16"),
    "openvino-half": Peer("OpenVINO bf16, engine bf16, --target cpu", HALF, "openvino", BF16, "bf16"),
    "openvino-int8": Peer("OpenVINO int8", {"int8": True}, "openvino", BF16, "bf16"),
    "openvino-taesd": Peer(
        "OpenVINO bf16, engine bf16, tiny autoencoder", {**HALF, "vae": "tiny"}, "openvino", BF16, "bf16"
    ),
    "openvino-up": Peer(
        "OpenVINO bf16, engine bf16, --attention up", {**HALF, "blocks": ("up",)}, "openvino", BF16, "bf16"
    ),
}


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
        print(f"error: --peers: expected some of {', '.join(PEERS)}, found {', '.join(unknown)}", file=sys.stderr)
        raise typer.Exit(2)
    check_options(model, family, plot)
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
                engines[name] = (
                    folder / f"{'_'.join([*(f'{k}-{v}' for k, v in wanted.items())]) or 'plain'}-{size}.onnx"
                )
                if not engines[name].exists():
                    say(f"exporting {engines[name].name} …")
                    child(MODULE, "make_engine", model, str(engines[name]), wanted, size)
        rounds = []
        for index in range(repeat):
            say(f"round {index + 1} of {repeat} …")
            found: dict[str, Any] = {"peak": child(MODULE, "measure_peak", threads)}
            for name in chosen:
                labels = str(Path(temporary) / f"{name}.npy")
                found[name] = child(MODULE, "measure", name, model, str(engines.get(name, "")), size, threads, labels)
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


def check_options(model: str, family: str, plot: Path | None) -> None:
    """End with one line where the family is unknown, or the plot could not be written after all the measuring."""
    from tools.tiny.random_pipelines import FAMILIES

    if not model and family not in FAMILIES:
        print(f"error: --family: expected one of {', '.join(FAMILIES)}, found {family}", file=sys.stderr)
        raise typer.Exit(2)
    if plot and (not plot.absolute().parent.is_dir() or plot.suffix.lower() != ".png"):
        print(f"error: --plot: expected a .png in a folder that exists, found {plot}", file=sys.stderr)
        raise typer.Exit(2)


def summarize(rounds: list[dict[str, Any]], chosen: list[str], threads: int, folder: Path) -> dict[str, Any]:
    """Medians and spread of every program, ratios to the first, share of the peak, agreement with the first."""
    import numpy as np

    from export.check.agreement import matched_agreement
    from tools.benchmark.core import machine

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


def make_engine(model: str, engine: str, wanted: dict[str, Any], size: int) -> None:
    """Export what a program needs; int8 is calibrated on a drawn frame, which serves to time it and nothing else."""
    from export.engine import ExportRequest, export_engine

    path = Path(engine)
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in wanted.items()
    }
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        if options.get("vae") == "tiny":
            import torch
            from diffusers import AutoencoderTiny

            torch.manual_seed(0)
            options["vae"] = f"{folder}/taesd"
            AutoencoderTiny().save_pretrained(options["vae"])
        int8 = options.pop("int8", False)
        request = ExportRequest(model=model, size=(size, size) if size else None, **options)
        if not int8:
            export_engine(request, path, check=False)
            return
        from export.check.maps import random_frame
        from export.quantize import write_quantized

        plain = Path(folder) / "plain.onnx"
        spec = export_engine(request, plain, check=False).spec
        write_quantized(plain, spec, iter([random_frame(spec.height, spec.width)]), path)


def measure(name: str, model: str, engine: str, size: int, threads: int, labels: str) -> dict[str, Any]:
    """Load, run once to warm up, and time the next frame: seconds, peak memory and work; the labels go to a file."""
    import cv2
    import numpy as np

    from export.check.maps import random_frame
    from export.progress import peak_memory

    peer = PEERS[name]
    cv2.setNumThreads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # the merge's
    start = time.perf_counter()
    run = _eager(model, threads) if peer.engine is None else _engine(peer, engine, threads)
    load = time.perf_counter() - start
    picture = random_frame(size or 512, size or 512)
    if peer.engine is not None:  # PyTorch compiles nothing: its first frame takes as long as the next
        run(picture)
    wall, processor = time.perf_counter(), time.process_time()
    found, merge, flops = run(picture)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    np.save(labels, found)
    memory = peak_memory() / 1e9
    return {"wall": wall, "processor": processor, "merge": merge, "load": load, "memory_gb": memory, "flops": flops}


def _eager(model: str, threads: int) -> Callable[[Any], tuple[Any, float, float]]:
    """The authors' way, written anew: diffusers with hooks on its attention, and an elementwise KL."""
    import torch

    from export.check.eager import eager_pyramid
    from export.model.load import load_model
    from tools.benchmark.core import core_elementwise

    torch.set_num_threads(threads)
    pipeline = load_model(model)

    def run(picture: Any) -> tuple[Any, float, float]:
        pyramid = [level[0] for level in eager_pyramid(pipeline, picture[None], 300)]
        labels, stages = core_elementwise(pyramid, pipeline.family.thresholds, picture.shape[:2])
        return labels, stages["total"], 0.0

    return run


def _engine(peer: Peer, engine: str, threads: int) -> Callable[[Any], tuple[Any, float, float]]:
    from runtime.segmenter import Segmenter

    segmenter = Segmenter.open(engine, "cpu", backend=peer.backend, options={"threads": threads, **peer.options})
    # A quantised graph has no shapes to count by, and another floor.
    flops = 0.0 if segmenter.engine.spec.precision == "int8" else _flops(Path(engine))

    def run(picture: Any) -> tuple[Any, float, float]:
        result = segmenter(picture)
        return result.labels, result.milliseconds["merge"] / 1e3, flops

    return run


def _flops(path: Path) -> float:
    import onnx_ir

    from export.graph.count import graph_cost

    return float(graph_cost(onnx_ir.load(path), 1).flops)


def measure_peak(threads: int) -> dict[str, float]:
    """Operations per second of one large matrix product, by precision: what no network on this machine can exceed.

    Through OpenVINO, whose kernels the fastest programs run on; for one thread by processor time.
    """
    import numpy as np
    import openvino as ov
    from openvino import opset13 as opset

    peaks = {}
    clock = time.process_time if threads == 1 else time.perf_counter
    core = ov.Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for kind, hint in (("fp32", "f32"), *([("bf16", "bf16")] if "BF16" in able else [])):
        left = opset.parameter([PRODUCT, PRODUCT], np.float32)
        right = opset.constant(np.random.default_rng(0).normal(size=(PRODUCT, PRODUCT)).astype(np.float32))
        model = ov.Model([opset.matmul(left, right, False, False)], [left])
        request = core.compile_model(
            model, "CPU", {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        ).create_infer_request()
        given = np.ones((PRODUCT, PRODUCT), np.float32)
        times = []
        for _ in range(12):
            start = clock()
            request.infer([given], share_inputs=True)
            times.append(clock() - start)
        peaks[kind] = 2 * PRODUCT**3 / min(times)
    peaks.setdefault("bf16", peaks["fp32"])
    return peaks


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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

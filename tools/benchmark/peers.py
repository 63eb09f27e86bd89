"""Programs that turn a frame into labels on a CPU: how each one is exported, loaded, run and timed.

Each one runs in a process of its own: peak memory belongs to a process and is never given back.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.benchmark.elementwise import core_elementwise

PRODUCT = 2048  # side of the matrices whose product gives the machine's peak


@dataclass(frozen=True, slots=True)
class Peer:
    """A program to measure.

    `engine`: the options of its export; None: PyTorch, without an engine. `backend`, `options`: of
    `runtime.Segmenter.open`. `peak`: the precision of the matrix product that its floor is computed from.
    """

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


def make_engine(model: str, engine: str, wanted: dict[str, Any], size: int) -> None:
    """Export the engine that a program needs.

    An int8 engine is calibrated on one drawn frame: enough for its speed, not for its labels.
    """
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


def measure_peer(name: str, model: str, engine: str, size: int, threads: int, labels: str) -> dict[str, Any]:
    """Load a program, run it once to warm up, and time the next frame; its labels go to the file `labels`.

    Returns `wall`, `processor`, `merge` and `load` in seconds, `memory_gb` (peak) and `flops` of the network.
    """
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
    """What the authors' code does, written independently: diffusers with hooks on its attention, an elementwise KL."""
    import torch

    from export.check.eager import eager_pyramid
    from export.model.load import load_model

    torch.set_num_threads(threads)
    pipeline = load_model(model)

    def run(picture: Any) -> tuple[Any, float, float]:
        pyramid = [level[0] for level in eager_pyramid(pipeline, picture[None], 300)]
        labels, stages = core_elementwise(pyramid, pipeline.family.thresholds, picture.shape[:2])
        return labels, stages["total"], 0.0

    return run


def _engine(peer: Peer, engine: str, threads: int) -> Callable[[Any], tuple[Any, float, float]]:
    from runtime.engine.registry import open_engine
    from runtime.segmenter import Segmenter

    segmenter = Segmenter(open_engine(engine, "cpu", peer.backend, threads=threads, **peer.options))
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
    """Operations per second of one large matrix product, by precision: no network on this machine can exceed it.

    Measured with OpenVINO, whose kernels the fastest programs use; with one thread by processor time.
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

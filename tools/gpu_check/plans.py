"""Engines on a GPU: parity with the CPU, time per stage, and the same in PyTorch.

Each of these functions runs in a process of its own, so that a failure loses no figures but its own.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.gpu_check.bench import Skipped

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.segmenter import Segmenter
    from tools.gpu_check.bench import Bench

PICTURE = Path(__file__).parents[1] / "pictures" / "scene.png"
ROW_KL, LABELS = {"fp32": 1e-6, "fp16": 1e-4, "bf16": 1e-2}, 0.001  # at most: mean row KL, share of pixels


def tiny_onnxruntime(bench: Bench) -> dict[str, Any]:
    """The tiny engine through ONNX Runtime on CUDA; its maps are merged on the GPU."""
    import onnxruntime

    from runtime.engine.registry import EMBEDDED

    if not bench.dry and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise Skipped("this ONNX Runtime has no CUDA: pip uninstall onnxruntime && pip install 'diffseg[gpu]'")
    return compare(EMBEDDED, bench.name, bench.repeat)


def tiny_plan(bench: Bench, flavour: str) -> dict[str, Any]:
    """The tiny engine as a plan of a flavour, built and run on this GPU."""
    from export.plan.build import PlanRequest, build_plan
    from export.progress import Phases
    from runtime.engine.registry import EMBEDDED

    if bench.dry:
        return compare(EMBEDDED, bench.name, bench.repeat)
    check_flavour(flavour)
    device, repeat = bench.device, bench.repeat
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.plan"
        spec = build_plan(EMBEDDED, path, PlanRequest(flavour=flavour, device=device), Phases())
        assert spec.plan is not None
        built = {"seconds": spec.plan.seconds, "inspected": spec.plan.inspected, "version": spec.plan.version}
        return {"build": built, **compare(path, f"cuda:{device}", repeat)}


def check_flavour(flavour: str) -> None:
    """Raise Skipped where a flavour of TensorRT is not installed."""
    if importlib.util.find_spec(flavour) is None:
        raise Skipped(f"the package {flavour} is not installed")


def compare(path: Path, device: str, repeat: int) -> dict[str, Any]:
    """Compare the tiny engine, in any form, with itself on the CPU: maps, labels, and milliseconds of every stage."""
    import numpy as np

    from export.check.maps import mean_divergence
    from runtime import Segmenter
    from runtime.engine.registry import open_engine
    from runtime.frames.decode import read_frame

    frame = read_frame(PICTURE)
    there, here = (Segmenter(each) for each in (open_engine(path, device), open_engine(None, "cpu", "onnxruntime")))
    batch = here.stages.resize(frame)[None]
    pairs = zip(there.engine.infer(batch), here.engine.infer(batch), strict=True)
    divergence = max(mean_divergence(found, expected) for found, expected in pairs)
    labels = float(np.mean(there(frame).labels != here(frame).labels))
    missed = []
    if divergence > ROW_KL[there.engine.spec.precision]:
        missed.append(f"row KL {divergence:.1e}")
    if labels > LABELS:
        missed.append(f"labels differ in {labels:.2%} of the pixels")
    return {"row_kl": divergence, "labels_differ": labels, "missed": missed, **stages(there, frame, repeat)}


def stages(segmenter: Segmenter, frame: Any, repeat: int) -> dict[str, Any]:
    """Median milliseconds of every stage after a warm-up, and the merge's share of the frame."""
    runs = [segmenter(frame).milliseconds for _ in range(repeat + 3)][3:]
    median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {"milliseconds": median, "merge_share": median["merge"] / median["total"]}


def full_size(bench: Bench, flavour: str, family: str = "sd15", precision: str = "fp16") -> dict[str, Any]:
    """An engine of Stable Diffusion's size as a plan, taking turns with PyTorch eager on the same weights.

    Both turn a frame on the host into maps on the GPU. Weights are random, and scaled so that the maps differ. In a dry
    run the engine is a small one, and is not made into a plan.
    """
    torch = bench.torch()
    if bench.dry:
        family, precision = "small", "fp32"
    else:
        check_flavour(flavour)
    where = bench.name
    import numpy as np

    from export.check.eager import eager_maps
    from export.check.maps import mean_divergence, random_frame
    from export.engine import ExportRequest, export_engine
    from export.model.load import load_model
    from export.plan.build import PlanRequest, build_plan
    from export.progress import Phases
    from runtime import Segmenter
    from runtime.engine.registry import open_engine
    from tools.tiny.random_pipelines import save_random_pipeline

    with tempfile.TemporaryDirectory() as folder:
        model = save_random_pipeline(Path(folder) / family, family)
        path = Path(folder) / "engine.onnx"
        export_engine(ExportRequest(model=str(model), precision=precision), path, check=False)
        if not bench.dry:
            build_plan(path, path.with_suffix(".plan"), PlanRequest(flavour=flavour, device=bench.device), Phases())
            path = path.with_suffix(".plan")
        pipeline = load_model(str(model), "", precision)
        free = _free(bench)
        engine = open_engine(path, where)
        memory = {"plan_mb": (free - _free(bench)) / 1e6}
    spec = engine.spec
    pipeline.unet.to(where)
    pipeline.vae.to(where)
    frames = random_frame(spec.height, spec.width)[None]

    def eager() -> list[Any]:
        maps = eager_maps(pipeline, frames, spec.timestep)
        if not bench.dry:
            torch.cuda.synchronize(bench.device)
        return maps

    expected = [level.cpu().numpy() for level in eager()]
    found = engine.infer(frames)
    divergence = max(mean_divergence(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    uniform = max(mean_divergence(np.full_like(level, 1 / level.shape[-1]), level) for level in expected)
    run = engine.infer if bench.dry else engine.infer_on_device
    ours, theirs = take_turns(lambda: run(frames), eager, bench.repeat)
    memory["eager_mb"] = 0.0 if bench.dry else torch.cuda.max_memory_allocated(bench.device) / 1e6
    times = stages(Segmenter(engine), frames[0], bench.repeat)
    missed = [] if divergence <= 1e-2 else [f"row KL {divergence:.1e} to PyTorch in {precision}"]
    plan = spec.plan
    built = {"build_seconds": plan.seconds, "plan_gb": plan.size / 1e9, "inspected": plan.inspected} if plan else {}
    return {
        "family": family,
        "precision": precision,
        **built,
        "row_kl_to_eager": divergence,
        "row_kl_to_uniform": uniform,
        "network_milliseconds": statistics.median(ours),
        "eager_milliseconds": statistics.median(theirs),
        "faster_than_eager": statistics.median(their / our for our, their in zip(ours, theirs, strict=True)),
        "memory": memory,
        "missed": missed,
        **times,
    }


def _free(bench: Bench) -> int:
    """Free bytes on the GPU; 0 in a dry run."""
    if bench.dry:
        return 0
    from runtime.gpu import driver

    return driver.gpu(bench.device).free()


def take_turns(
    first: Callable[[], Any], second: Callable[[], Any], repeat: int, warm: int = 3
) -> tuple[list[float], list[float]]:
    """Milliseconds of two programs that take turns, so that both see the same machine; the first `warm` are dropped."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeat + warm):
        for program, found in zip((first, second), times, strict=True):
            start = time.perf_counter()
            program()
            found.append((time.perf_counter() - start) * 1e3)
    return times[0][warm:], times[1][warm:]

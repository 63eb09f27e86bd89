"""The merge core alone: reference vectors, compute-sanitizer, machine code, times and captures.

These parts need NumPy, the driver and nvcc, and nothing else.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import re
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from tools.gpu_check.bench import GRID, ROOT, THRESHOLDS, Bench, Skipped, drawn_maps, softmax_maps

PACKAGES = ("numpy", "opencv-python", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
LABELS = 0.001  # share of pixels that may differ
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Run by the Python that compute-sanitizer starts, on the library that its argument names.
SMALL = """
import sys
from pathlib import Path
import numpy as np
from runtime import native
from runtime.merge import MergeConfig
from runtime.native.maps import DeviceMaps
rng = np.random.default_rng(0)
maps = [rng.random((2, n, n)).astype(np.float32) for n in (330, 63)]
library, config, grids = native.load(path=Path(sys.argv[1])), MergeConfig((0.05,) * 3, 12), [(15, 22), (7, 9)]
labels = native.segment(maps, config, (40, 50), grids, library=library)
there = DeviceMaps([level[0] for level in maps], config, (5, 11), grids, None, "cuda", library)
for thresholds in ((0.05,) * 3, (0.02,) * 3):
    there.merged(thresholds)
there.means(np.arange(330) % 7, 7)
print(labels.shape)
"""
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


def machine(bench: Bench) -> dict[str, Any]:
    """The card, its memory, and the versions of everything that the figures depend on."""
    found: dict[str, Any] = {"system": platform.platform(), "python": platform.python_version()}
    library = bench.library()
    found["device"], found["capability"] = library.device_name(bench.device)
    found["library"] = library.built
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    queried = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
    for name, command in (
        ("nvidia-smi", ["nvidia-smi", f"--query-gpu={queried}", "--format=csv,noheader"]),
        ("nvcc", ["nvcc", "--version"]),
    ):
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            found[name] = done.stdout.strip().splitlines()[-1:]
    return found


def core_for(bench: Bench, sides: list[int], thresholds: Any, dtype: str = "float32", batch: int = 1) -> Any:
    """The core for square levels of these sides, the paper's grid or as many anchors as fit."""
    from runtime.native.core import Core
    from runtime.pyramid.config import MergeConfig
    from runtime.pyramid.weights import resolution_ratios

    shapes = [(side, side) for side in sides]
    config = MergeConfig(tuple(map(float, thresholds)), min(GRID, sides[0]))
    ratios = resolution_ratios("proportional", shapes)
    return Core(bench.library(), config, ratios, shapes, dtype=dtype, batch=batch, device=bench.device)


def vectors(bench: Bench) -> dict[str, Any]:
    """Labels of the reference vectors, which the paper's code gave, and their aggregated attention."""
    import numpy as np

    found: dict[str, Any] = {"labels_differ": {}, "aggregate": {}, "missed": []}
    for path in sorted((ROOT / "tests" / "data").glob("reference_*.npz"))[: 1 if bench.dry else None]:
        with np.load(path) as vector:
            pyramid = [softmax_maps(vector[name].astype(np.float64)) for name in ("q64", "q32", "q16", "q8")]
            core = core_for(bench, [64, 32, 16, 8], vector["thresholds"])
            output = core(pyramid, 1, vector["labels"].shape, details=True)
            differ = float(np.mean(output.labels[0] != vector["labels"]))
            error = np.abs(output.attention[0, [0, 1000, 4095]] / vector["aggregate_rows"] - 1).max()
        found["labels_differ"][path.stem], found["aggregate"][path.stem] = differ, float(error)
        if differ > LABELS or not error <= 1e-4:
            found["missed"].append(f"{path.stem}: {differ:.2%} of the labels differ, aggregate is {error:.0e} off")
        again = core(pyramid, 1, output.labels[0].shape, details=True)
        if not (again.labels == output.labels).all() or not (again.proposals == output.proposals).all():
            found["missed"].append(f"{path.stem}: a second run gave other bits")
    return found


def sanitizer(bench: Bench) -> dict[str, Any]:
    """The four tools of compute-sanitizer over a small call; in a dry run the call without them."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not bench.dry and not Path(program).is_file():
        raise Skipped("compute-sanitizer is not on PATH and not in /usr/local/cuda/bin")
    library, found = bench.library().path, {}
    missed = []
    for tool in TOOLS:
        prefix = [] if bench.dry else [program, "--tool", tool, "--error-exitcode", "9"]
        command = [*prefix, sys.executable, "-c", SMALL, str(library)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        found[tool] = done.returncode
        if done.returncode or "(2, 40, 50)" not in done.stdout:
            missed.append(f"{tool}: exit {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return {"exits": found, "missed": missed}


STAND_IN = "\n".join(["Function : divergence", *["HMMA.1688.F32.TF32 R0", "LDS.128 R0"] * 16, "Function : member_sums"])


def sass(bench: Bench) -> dict[str, Any]:
    """What the compiler made of the two products: full-depth tensor-core instructions, loads of shared memory."""
    if bench.dry:
        text = STAND_IN + "\n" + STAND_IN.partition("\n")[2].rpartition("\n")[0]
    else:
        program = shutil.which("cuobjdump") or "/usr/local/cuda/bin/cuobjdump"
        if not Path(program).is_file():
            raise Skipped("cuobjdump is not on PATH and not in /usr/local/cuda/bin")
        command = [program, "-sass", str(bench.library().path)]
        text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    counts = sass_counts(text)
    if bench.library().device_name(bench.device)[1] in range(1, 80):
        raise Skipped("a GPU before compute capability 8.0 has no tensor cores for TF32")
    missed = []
    for name in ("divergence", "member_sums"):
        found = counts.get(name, Counter())
        if not found["HMMA.1688.F32.TF32"] or not found["LDS.128"] or found["LD.E"] or found["HMMA.1684.F32.TF32"]:
            missed.append(f"{name}: expected HMMA.1688 and LDS.128 without LD.E, found {dict(found.most_common(8))}")
    return {"counts": {name: dict(found.most_common(12)) for name, found in counts.items()}, "missed": missed}


def sass_counts(text: str) -> dict[str, Counter[str]]:
    """Instructions of the two products by kernel, from the text of cuobjdump; of several architectures together."""
    counts: dict[str, Counter[str]] = {}
    current: Counter[str] | None = None
    for line in text.splitlines():
        kernel = re.search(r"Function : (\S+)", line)
        if kernel:
            name = next((name for name in ("divergence", "member_sums") if name in kernel[1]), None)
            current = None if name is None else counts.setdefault(name, Counter())
            continue
        instruction = re.match(r"\s*(?:/\*[0-9a-f]+\*/\s+)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)\b", line)
        if current is not None and instruction:
            current[instruction[1]] += 1
    return counts


def timing(bench: Bench) -> dict[str, Any]:
    """Milliseconds of every stage for each type, size and batch, with the bytes and operations a second they mean."""
    import numpy as np

    runs: dict[str, Any] = {}
    for side in (16, 24) if bench.dry else (64, 96):
        pyramid, sides = drawn_maps(side), [side, side // 2, side // 4, side // 8]
        for batch in (1, 2 if bench.dry else 8):
            for dtype, size in SIZES.items():
                name = f"{side}x{side}, batch {batch}, {dtype}"
                try:
                    maps = [np.broadcast_to(_stored(level, dtype), (batch, *level.shape)) for level in pyramid]
                    core = core_for(bench, sides, THRESHOLDS, dtype, batch)
                    times = core.profile(maps, batch, (8 * side,) * 2, 2 if bench.dry else bench.repeat + 3)[1:]
                    kept = core(maps, batch, (8 * side,) * 2).segments
                except Exception as error:  # as of a card with too little memory for the largest
                    runs[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
                    continue
                stages = {stage: statistics.median(run[stage] for run in times) for stage in times[0]}
                runs[name] = {
                    "milliseconds": statistics.median(sum(run.values()) for run in times),
                    "stages": stages,
                    "rates": _rates(stages, sides, core.grid**2, batch, size),
                    "segments": int(kept[0]),
                    "workspace_mb": core.workspace_size / 1e6,
                }
                del core
    missed = [f"{name}: {run['error']}" for name, run in runs.items() if "error" in run]
    return {"runs": runs, **({"missed": missed} if len(missed) == len(runs) else {})}


def _stored(level: Any, dtype: str) -> Any:
    """A level as it is stored: bfloat16 as the upper half of float32."""
    import numpy as np

    if dtype == "bfloat16":
        return (level.view(np.uint32) >> 16).astype(np.uint16)
    return level.astype(dtype)


def _rates(stages: dict[str, float], sides: list[int], anchors: int, batch: int, size: int) -> dict[str, str]:
    n = sides[0] ** 2
    maps = sum(side**4 for side in sides) * size
    moved = {"aggregate": maps + 4 * n * n, "divergence": 4 * n * n, "means": 4 * n * n + 4 * anchors * n}
    operations = {"divergence": 4 * anchors * n * n, "means": 4 * anchors * n * n}
    rates = {}
    for stage, milliseconds in stages.items():
        if stage in moved and milliseconds > 0:
            seconds = milliseconds / 1e3
            rates[stage] = f"{batch * moved[stage] / seconds / 1e9:.0f} GB/s"
            if stage in operations:
                rates[stage] += f", {batch * operations[stage] / seconds / 1e12:.1f} TFLOP/s"
    return rates


MODES = {"global": 0, "thread-local": 1, "relaxed": 2}


def capture(bench: Bench) -> dict[str, Any]:
    """A run in a CUDA graph, captured in every mode by a handle that has never run: its labels are those of a run."""
    import numpy as np

    from runtime.native.library import Frames, Memory

    driver = _NoDriver() if bench.dry else ctypes.CDLL("libcuda.so.1")
    library, pyramid = bench.library(), drawn_maps(16)
    config_sides = [len(level) ** 0.5 for level in pyramid]
    sides = [round(side) for side in config_sides]
    expected = core_for(bench, sides, THRESHOLDS)(pyramid, 1, (64, 64)).labels[0]
    memory = [Memory(library, bench.device, level.nbytes) for level in pyramid]
    for level, target in zip(pyramid, memory, strict=True):
        target.upload(np.ascontiguousarray(level))
    labels = Memory(library, bench.device, 64 * 64)
    frames = Frames(batch=1, height=64, width=64, labels=labels.pointer)
    frames.thresholds[:3] = THRESHOLDS
    frames.maps[: len(memory)] = [level.pointer for level in memory]
    differ: dict[str, float] = {}

    def call(name: str, *arguments: Any) -> None:
        status = getattr(driver, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} failed with {status} in the mode {mode}")

    for mode, number in MODES.items():
        core = core_for(bench, sides, THRESHOLDS)
        stream, graph, executable = (ctypes.c_void_p() for _ in range(3))
        call("cuStreamCreate", ctypes.byref(stream), 1)
        call("cuStreamBeginCapture_v2", stream, number)
        library.call("run", core._handle, ctypes.byref(frames), stream)
        call("cuStreamEndCapture", stream, ctypes.byref(graph))
        call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        call("cuGraphLaunch", executable, stream)
        library.call("check", core._handle, stream, None)
        found = np.empty((64, 64), np.uint8)
        labels.download(found, stream.value or 0)
        differ[mode] = float(np.mean(found != expected))
        call("cuGraphExecDestroy", executable)
        call("cuGraphDestroy", graph)
        call("cuStreamDestroy_v2", stream)
    missed = [f"{mode}: {share:.2%} of the labels differ" for mode, share in differ.items() if share]
    return {"labels_differ": differ, "missed": missed}


class _NoDriver:
    """A driver that does nothing: the CPU build has done the work already."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: 0

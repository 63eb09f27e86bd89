"""Everything that needs a GPU, in one command.

Builds the native library, runs every test marked `gpu`, times the merge core, runs engines through ONNX Runtime and as
plans of every installed flavour, times a plan of Stable Diffusion's size against PyTorch, and writes one JSON report.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.errors import DiffSegError, UsageError
from runtime.terminal import complain

ROOT = Path(__file__).resolve().parents[2]


def check(
    output: Annotated[Path, typer.Option(help="The report.")] = Path("gpu_report.json"),
    side: Annotated[int, typer.Option(min=16, help="Side of the finest resolution of the timed core.")] = 64,
    repeat: Annotated[int, typer.Option(min=1, help="Timed runs.")] = 50,
    device: Annotated[int, typer.Option(min=0, help="Which GPU.")] = 0,
    full: Annotated[bool, typer.Option(help="Also at full size, which takes minutes and 15 GB of disk.")] = True,
) -> None:
    """Build, test and time on this machine's GPU.

    Exit 1: no GPU, a failed test or measurement, or a figure outside its bound.
    Exit 2: the report cannot be written there.
    """
    from runtime import native
    from runtime.files import write_atomically
    from runtime.gpu.probe import check_driver
    from tools.benchmark.native import measure

    if output.is_dir() or not output.parent.is_dir():
        why = "is a folder" if output.is_dir() else "is in no folder that exists"
        raise UsageError(f"--output: expected a file to write, found {output}, which {why}; choose another")
    try:
        check_driver()
    except DiffSegError as error:
        found = str(error).rpartition("; ")[0]
        raise DiffSegError(f"{found}; run this where there is one: 'python -m pytest' tests the rest") from None
    library = native.load(device)
    core = measure(library, side, repeat, device)
    tests = run_tests()
    engines = measure_engines(device, repeat, full)
    report = {
        "device": core["device"],
        "capability": core["capability"],
        "versions": versions(),
        "library": str(library.path),
        "tests": tests,
        "core": core,
        "engines": engines,
    }
    write_atomically(output, (json.dumps(report, indent=1) + "\n").encode())
    wrong = [f"{name}: {problem}" for name, found in engines.items() for problem in problems(found)]
    for line in wrong:
        complain(line)
    typer.echo(
        f"{core['device']}: core {core['milliseconds']:.3f} ms, labels differ {core['difference']:.4%}, tests "
        f"{tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped; wrote {output}"
    )
    bad = tests["failed"] or not tests["passed"] or core["difference"] > 0.001 or wrong
    raise typer.Exit(1 if bad else 0)


def measure_engines(device: int, repeat: int, full: bool) -> dict[str, Any]:
    """Measure every way to run an engine on this GPU, by name; one that is not installed is reported as skipped."""
    found: dict[str, Any] = {"onnxruntime": measure_apart("tiny_onnxruntime", device, repeat)}
    for flavour in ("tensorrt", "tensorrt_rtx"):
        if importlib.util.find_spec(flavour) is None:
            found[flavour] = {"skipped": f"{flavour} is not installed"}
            continue
        found[flavour] = measure_apart("tiny_plan", flavour, device, repeat)
        if full:
            found[f"{flavour}, full size"] = measure_apart("full_size", flavour, device, repeat)
    return found


def measure_apart(function: str, *arguments: Any) -> dict[str, Any]:
    """Call a function of `tools.gpu_check.plans` in a process of its own; {"error": why} when it fails or is killed."""
    code = (
        "import json, sys; from tools.gpu_check import plans; "
        f"print(json.dumps(plans.{function}(*json.loads(sys.argv[1]))))"
    )
    typer.echo(f"{function} {' '.join(map(str, arguments))} …", err=True)
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"error": f"exit {done.returncode}: {' '.join(done.stderr.strip().splitlines()[-1:])[:1000]}"}
    measured: dict[str, Any] = json.loads(lines[-1])
    return measured


def problems(found: dict[str, Any]) -> list[str]:
    """The faults of a measurement, a sentence each."""
    return [found["error"]] if "error" in found else list(found.get("missed", []))


def run_tests() -> dict[str, Any]:
    """Run the tests marked gpu, and count those that passed, failed and were skipped, with the reasons."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tests.xml")
        command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={path}"]
        done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
        if not path.exists():
            return {"passed": 0, "failed": 1, "skipped": 0, "reasons": {"pytest": f"exit {done.returncode}"}}
        return read_results(path)


def read_results(path: Path) -> dict[str, Any]:
    """Counts and reasons from a JUnit file."""
    counts: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "reasons": {}}
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        kind = "passed" if problem is None else "skipped" if problem.tag == "skipped" else "failed"
        counts[kind] += 1
        if problem is not None:
            counts["reasons"][name] = (problem.get("message") or "")[:500]
    return counts


def versions() -> dict[str, str]:
    """Versions of everything that the figures depend on."""
    import cv2
    import numpy as np

    found = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
    for package in ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    programs = {
        "driver": ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        "nvcc": ["nvcc", "--version"],
    }
    for name, command in programs.items():
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            continue
        lines = done.stdout.strip().splitlines()
        if lines:
            found[name] = lines[-1]
    return found

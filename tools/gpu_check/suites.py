"""Tests marked `gpu`, by file: a package that other tests need may be missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from tools.gpu_check.bench import ROOT, Bench, Skipped


def tests(bench: Bench, *files: str) -> dict[str, Any]:
    """Run the tests marked gpu of these files; in a dry run they skip themselves.

    Counts those that passed, failed and were skipped, with the reasons. Raises Skipped where all were.
    """
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("the package pytest is not installed")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tests.xml")
        command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={path}", *files]
        done = subprocess.run(command, cwd=ROOT, check=False)
        if not path.exists():
            return {"missed": [f"pytest gave no results, exit {done.returncode}"]}
        found = read_results(path)
    if found["failed"]:
        found["missed"] = [f"{found['failed']} tests failed"]
    elif not found["passed"]:
        raise Skipped(next(iter(found["reasons"].values()), "no test was found"))
    return found


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

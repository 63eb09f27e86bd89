"""Everything that needs a GPU, in one command, in order of worth. Nothing that fails loses what was found before it.

Each part runs in a process of its own with a time limit. The report is written after every part.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import DiffSegError, UsageError
from runtime.files import write_atomically
from tools.gpu_check.apart import run_apart
from tools.gpu_check.bench import Bench
from tools.gpu_check.parts import PARTS, Part


def run_check(
    output: Path, bench: Bench, only: Sequence[str], minutes: float | None, say: Callable[[str], None]
) -> bool:
    """Run the parts, all or those named, that fit into so many minutes. Returns whether none of them failed.

    Raises UsageError where the report cannot be written or no part has such a name; DiffSegError without a GPU, unless
    the run is dry.
    """
    if output.is_dir() or not output.parent.is_dir():
        why = "is a folder" if output.is_dir() else "is in no folder that exists"
        raise UsageError(f"--output: expected a file to write, found {output}, which {why}; choose another")
    known = [part.name for part in PARTS]
    for name in only:
        if name not in known:
            raise UsageError(f"--only: expected some of {', '.join(known)}; found {name!r}")
    if not bench.dry:
        _check_gpu(bench.device)
    parts = [part for part in PARTS if not only or part.name in only]
    report: dict[str, Any] = {"finished": False, "dry": bench.dry, "parts": {}}
    began = time.monotonic()
    for part in parts:
        left = None if minutes is None else 60 * minutes - (time.monotonic() - began)
        report["parts"][part.name] = _one(part, bench, left, say)
        _write(output, report)
    report["finished"] = True
    _write(output, report)
    counts = [found["status"] for found in report["parts"].values()]
    summary = ", ".join(f"{counts.count(word)} {word}" for word in ("passed", "failed", "ended", "skipped"))
    say(f"{summary} of {len(parts)} parts; wrote {output}")
    return not {"failed", "ended"} & set(counts)


def _one(part: Part, bench: Bench, left: float | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Run one part where there is time for it. `left`: seconds, or None for as many as it takes."""
    if left is not None and left < 60 * part.minutes:
        return {"status": "skipped", "why": f"takes about {part.minutes:g} minutes, {max(left, 0) / 60:.1f} were left"}
    say(f"{part.name} …")
    try:
        found = run_apart(part, bench, part.limit if left is None else min(part.limit, left))
    except Exception as error:  # as of a process that could not be started
        found = {"status": "failed", "why": f"{type(error).__name__}: {error}", "seconds": 0.0}
    why = f": {found['why'][:500]}" if "why" in found else ""
    say(f"{part.name}: {found['status']} in {found['seconds']:.1f} s{why}")
    return found


def _write(output: Path, report: dict[str, Any]) -> None:
    write_atomically(output, (json.dumps(report, indent=1) + "\n").encode())


def _check_gpu(device: int) -> None:
    from runtime.gpu.probe import check_driver

    try:
        count = check_driver()
    except DiffSegError as error:
        found = str(error).rpartition("; ")[0]
        raise DiffSegError(f"{found}; run this where there is one: 'python -m pytest' tests the rest") from None
    if device >= count:
        raise UsageError(f"--device: expected 0 to {count - 1}, found {device}; choose one of this machine's GPUs")

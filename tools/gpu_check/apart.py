"""A part of the check in a process of its own: nothing that it does ends the check or loses a figure."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.gpu_check.bench import ROOT, Bench, Skipped
from tools.gpu_check.parts import Part


def run_apart(part: Part, bench: Bench, seconds: float) -> dict[str, Any]:
    """Run a part for at most so many seconds.

    Returns its figures, with "status" (passed, failed, skipped, ended), "seconds", and "why" unless it passed.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "result.json"), Path(folder, "log.txt")
        given = json.dumps([part.function, asdict(bench), part.arguments])
        command = [sys.executable, "-m", "tools.gpu_check.apart", given, str(result)]
        with log.open("wb") as file:
            # A group of its own, so that what the part has started ends with it.
            child = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=os.name == "posix")
            try:
                status: int | None = child.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(child)
        found = _read(result)
        if found is None or status is None:
            # A limit may end a part that has written its figures already.
            why = f"took more than {seconds:.0f} s" if status is None else f"exit {status} before it gave its figures"
            found = {**(found or {}), "status": "ended", "why": why, "log": _tail(log)}
        elif found["status"] == "failed":
            found["log"] = _tail(log)
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(10)  # a process that hangs in the driver cannot be ended: the check goes on


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _tail(path: Path) -> str:
    return path.read_bytes()[-3000:].decode(errors="replace")


def measure(function: str, bench: Bench, arguments: list[str]) -> dict[str, Any]:
    """Call a part's function, in this process, and turn whatever it does into a result with a status."""
    try:
        module, _, name = function.partition(":")
        figures = getattr(importlib.import_module(module), name)(bench, *arguments)
        missed = list(figures.get("missed", []))
        json.dumps(figures)
        return {**figures, "status": "failed" if missed else "passed", **({"why": "; ".join(missed)} if missed else {})}
    except Skipped as error:
        return {"status": "skipped", "why": str(error)}
    except ModuleNotFoundError as error:
        return {"status": "skipped", "why": f"the package {error.name} is not installed"}
    except BaseException as error:  # also SystemExit: the report must name it
        traceback.print_exc()
        text = " ".join(str(error).split())[:1000]
        return {"status": "failed", "why": f"{type(error).__name__}: {text}"}


if __name__ == "__main__":
    from runtime.files import write_atomically

    what, fields, rest = json.loads(sys.argv[1])
    write_atomically(Path(sys.argv[2]), json.dumps(measure(what, Bench(**fields), rest)).encode())

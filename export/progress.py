"""Phases of a long job: shown while they run if stderr is a terminal, and kept for the report."""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Phase:
    """A finished phase: its wall time in seconds and the process's peak memory so far in bytes."""

    name: str
    seconds: float
    peak_memory: int


class Phases:
    """Times named phases: `with phases("trace"): ...`."""

    def __init__(self) -> None:
        self.done: list[Phase] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        from rich.console import Console

        console = Console(stderr=True)
        start = time.perf_counter()
        if console.is_terminal:
            with console.status(f"{name} …  ({self})" if self.done else f"{name} …"):
                yield
        else:
            yield
        self.done.append(Phase(name, time.perf_counter() - start, peak_memory()))

    def __str__(self) -> str:
        parts = [f"{phase.name} {phase.seconds:.1f} s" for phase in self.done]
        peak = self.done[-1].peak_memory if self.done else 0
        return ", ".join(parts) + (f"; peak memory {peak / 1e9:.1f} GB" if peak else "")


def peak_memory() -> int:
    """Peak resident memory of this program in bytes; 0 if the system does not tell."""
    # On Linux, getrusage starts with the peak of the parent process; this file does not.
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

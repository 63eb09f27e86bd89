"""Long runs: memory, handles and threads that must stay as they are. Each is a function for a process of its own."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROWTH = 0.02  # of the memory after the warm-up
SLACK = 2.0  # MB that an allocator may keep: two per cent of a small process is less than one arena


class Watch:
    """Memory in MB, handles and threads of this process and its children, from the end of the warm-up on."""

    def __init__(self, total: int) -> None:
        first, last = total // 5, total - total // 20  # at the end threads and handles are given back
        self._points = [first + number * (last - first) // 40 for number in range(41)]
        self.seen: list[tuple[float, int, int]] = []

    def __call__(self, number: int) -> None:
        """To be called after each step."""
        if self._points and number + 1 >= self._points[0]:
            self._points.pop(0)
            self.seen.append((_memory(), len(list(Path("/proc/self/fd").iterdir())), threading.active_count()))

    def figures(self) -> dict[str, Any]:
        """Growth of the memory between the first and the last fifth of what was seen, and of handles and threads."""
        fifth = max(1, len(self.seen) // 5)
        first, last = (
            sorted(point[0] for point in part)[fifth // 2] for part in (self.seen[:fifth], self.seen[-fifth:])
        )
        handles, threads = (self.seen[-1][index] - self.seen[0][index] for index in (1, 2))
        flat = last - first <= max(SLACK, GROWTH * first) and handles <= 0 and threads <= 0
        return {
            "memory MB": round(first, 1),
            "growth MB": round(last - first, 2),
            "handles": handles,
            "threads": threads,
            "flat": flat,
        }


def _memory() -> float:
    """Resident memory of this process and its children in MB, without pages that they share."""
    total = 0
    mine = str(os.getpid())
    for process in Path("/proc").iterdir():
        try:
            if process.name != mine:
                status = (process / "stat").read_text().rpartition(")")[2].split() if process.name.isdigit() else []
                if len(status) < 2 or status[1] != mine:
                    continue
            lines = (process / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Private"))
        except OSError:
            continue
    return total / 1024


def long_clip(frames: int) -> dict[str, Any]:
    """A clip of many frames through all stages into a movie and label pictures, with the stand-in for the engine."""
    import cv2
    import numpy as np
    from rich.progress import Progress

    from runtime.frames import raw
    from runtime.frames.source import Source
    from runtime.outputs.target import Target
    from runtime.segmenter import Segmenter
    from runtime.stream.clip import run_clip
    from runtime.stream.options import ClipOptions
    from tools.soak.standin import BrightEngine

    draw = np.random.default_rng(0)
    picture = cv2.resize(draw.integers(0, 256, (6, 8, 3), np.uint8), (128, 96), interpolation=cv2.INTER_CUBIC)
    reading, writing = os.pipe()
    raw.STDIN = reading

    def feed() -> None:
        with open(writing, "wb") as out:  # noqa: PTH123 - a descriptor
            for number in range(frames):
                out.write(np.roll(picture, number % 128, axis=1).tobytes())

    threading.Thread(target=feed, daemon=True).start()
    watch, count = Watch(frames), [0]

    def step(line: dict[str, object]) -> None:
        watch(count[0])
        count[0] += 1

    with tempfile.TemporaryDirectory() as folder, Progress(disable=True) as progress:
        run_clip(
            Segmenter(BrightEngine()).stages,
            Source(Path("-"), Path("out"), "stdin", "-"),
            Target(Path(folder, "out"), Path(folder), "out"),
            ["overlay", "labels"],
            ClipOptions(size=(128, 96), rate=Fraction(25)),
            progress=progress,
            report=step,
            say=lambda line: None,
        )
    return {"frames": count[0], **watch.figures()}


def cycles(number: int) -> dict[str, Any]:
    """Open the embedded engine, segment a frame, and close it, many times."""
    from runtime.segmenter import Segmenter

    frame = _scene()
    watch = Watch(number)
    for cycle in range(number):
        with Segmenter.open(device="cpu", options={"threads": 1}) as segmenter:
            segmenter(frame)
        watch(cycle)
    return {"cycles": number, **watch.figures()}


def clones(frames: int) -> dict[str, Any]:
    """Eight threads, each with a clone, on the same frames as one thread."""
    from concurrent.futures import ThreadPoolExecutor

    from runtime.segmenter import Segmenter

    pictures = [_scene(number) for number in range(4)]
    with Segmenter.open(device="cpu", options={"threads": 1}) as segmenter:
        expected = [segmenter(picture).labels for picture in pictures]
        copies = [segmenter.clone() for _ in range(8)]

        def work(copy: Segmenter) -> int:
            return sum((copy(pictures[n % 4]).labels != expected[n % 4]).any() for n in range(frames // 8))

        with ThreadPoolExecutor(8) as pool:
            differ = sum(pool.map(work, copies))
    return {"frames": frames // 8 * 8, "differ": int(differ), "flat": not differ}


def determinism(frames: int) -> dict[str, Any]:
    """The same bytes from every backend in every run, with any number of threads, one by one and in batches."""
    import subprocess

    found: dict[str, Any] = {"frames": frames, "differ": 0}
    for backend, precision in (("onnxruntime", ""), ("openvino", "fp32"), ("openvino", "bf16")):
        sums = set()
        for threads in (1, 2, 1, 3):
            words = [backend, precision, str(threads), str(frames)]
            code = "import sys; from tools.soak.long import hashed; print(hashed(*sys.argv[1:]))"
            done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
            sums |= set(done.stdout.split()) if not done.returncode else {"none"}
        if sums == {"none"}:  # not installed, or a processor without bfloat16
            continue
        found[f"{backend} {precision}".strip()] = len(sums)
        found["differ"] += len(sums) - 1
    return {**found, "flat": not found["differ"]}


def hashed(backend: str, precision: str, threads: str, frames: str) -> str:
    """Hashes of the labels of some scenes: frame by frame, and in batches."""
    from runtime.segmenter import Segmenter

    options = {"threads": int(threads)} | ({"precision": precision} if precision else {})
    pictures = [_scene(number) for number in range(int(frames))]
    with Segmenter.open(device="cpu", backend=backend, options=options) as segmenter:
        ways: list[Callable[[], Any]] = [
            lambda: [segmenter(picture) for picture in pictures],
            lambda: segmenter.map(pictures),
            lambda: segmenter.stream(pictures, temporal=False),
        ]
        return " ".join(
            hashlib.sha256(b"".join(result.labels.tobytes() for result in way())).hexdigest() for way in ways
        )


def _scene(number: int = 0) -> NDArray[np.uint8]:
    from tools.scenes.draw import draw_scene

    return draw_scene(number, (240, 320)).frame

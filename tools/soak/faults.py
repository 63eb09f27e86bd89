"""Runs that are killed, or whose disk fails at any stage; then `--resume` completes them. No work may be lost."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

PICTURES, CLIPS, FRAMES = 12, 2, 25
LONGEST = 120.0  # seconds for one run; more is a hang
KINDS = "overlay,labels,npz,panoptic"


def make_inputs(folder: Path) -> list[str]:
    """Drawn photographs and clips."""
    from fractions import Fraction

    import cv2
    import numpy as np

    from runtime.outputs.form import ClipForm
    from runtime.outputs.movie import VideoSink

    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(PICTURES):
        small = draw.integers(0, 256, (6, 8, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number:02d}.png"), cv2.resize(small, (160, 120), interpolation=cv2.INTER_CUBIC))
    first: Any = cv2.imread(str(folder / "00.png"))
    for number in range(CLIPS):
        sink = VideoSink(folder / f"clip{number}.mkv", ClipForm(Fraction(25), Fraction(1, 25)))
        for frame in range(FRAMES):
            sink.write(frame, Fraction(frame, 25), np.roll(first, 3 * frame, axis=1))
        sink.close()
    # Not our marks: a movie of ours would be no input.
    for path in folder.glob("clip*.mkv"):
        data = path.read_bytes()
        path.write_bytes(data[: -len(data) + data.rfind(b"free") - 4] if data.endswith(b"diffseg") else data)
    return [str(folder)]


def start(inputs: list[str], output: Path, fault: str = "", *, inside: bool = False) -> subprocess.Popen[str]:
    """A run of the command line with the stand-in; a fault is of this process alone, so `inside`: no children."""
    words = [*inputs, "--output", str(output), "--save", KINDS, "--resume", "--json"]
    environment = {**os.environ, "FAULT": fault, "DIFFSEG_IN_PROCESS": str(int(inside))}
    return subprocess.Popen(
        [sys.executable, "-m", "tools.soak.standin", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def outputs_of(folder: Path) -> dict[str, bytes]:
    """What a run has made, but for what says when and how long."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".png", ".mp4", ".json"):
            found[str(path.relative_to(folder))] = path.read_bytes()
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                found[str(path.relative_to(folder))] = b"".join(archive.read(name) for name in archive.namelist())
    return found


def not_whole(folder: Path) -> list[str]:
    """Files with an output's name that cannot be read as one."""
    import av
    import cv2
    import numpy as np

    wrong = []
    for path in sorted(folder.rglob("*")):
        try:
            if path.suffix == ".png":
                data = np.frombuffer(path.read_bytes(), np.uint8)
                assert b"IEND" in data[-12:].tobytes() and cv2.imdecode(data, cv2.IMREAD_UNCHANGED) is not None
            elif path.suffix == ".npz":
                with zipfile.ZipFile(path) as archive:
                    assert archive.testzip() is None
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".mp4":
                with av.open(str(path)) as container:
                    assert next(container.decode(video=0), None) is not None
        except Exception as error:
            wrong.append(f"{path.name}: {type(error).__name__} {error}")
    return wrong


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a run. A hang is status −1000."""
    try:
        said, complained = process.communicate(timeout=LONGEST)
        return process.returncode, said, complained
    except subprocess.TimeoutExpired:
        process.kill()
        said, complained = process.communicate()
        return -1000, said, complained


def inject(seconds: float) -> dict[str, Any]:
    """Kill runs at any moment, fail the disk at every stage, and fill a real one; then resume. What was found."""
    end = time.monotonic() + seconds
    draw = random.Random(1)
    counts = {"killed": 0, "full": 0, "readonly": 0, "full disk": 0}
    problems: list[str] = []
    lost = 0
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        inputs = make_inputs(root / "in")
        began = time.monotonic()
        status, _, complained = finish(start(inputs, root / "reference"))
        took = time.monotonic() - began
        if status:
            return {**counts, "work lost": 0, "problems": [f"the run without a fault: {complained[:500]}"]}
        reference = outputs_of(root / "reference")
        number = 0
        while time.monotonic() < end or not number:
            number += 1
            output = root / f"out{number}"
            kind = ("killed", "full", "readonly", "full disk")[number % 4]
            if kind == "full disk" and not _mount(output):
                kind = "killed"
            if kind == "killed":
                process = start(inputs, output)
                time.sleep(draw.uniform(0.2, 1.1) * took)
                process.kill()
                finish(process)
            elif kind == "full disk":
                status, _, complained = finish(start(inputs, output))
                problems += [f"{kind}: status {status}"] if status != 1 else []
            else:
                status, _, complained = finish(start(inputs, output, f"{kind}:{draw.randrange(1, 160)}", inside=True))
                problems += [f"{kind}: status {status}: {complained[-300:]}"] if status not in (0, 1, 2) else []
            problems += ["a traceback"] if kind != "killed" and "Traceback" in complained else []
            counts[kind] += 1
            problems += [f"{kind}: {text}" for text in not_whole(output)] if output.exists() else []
            done = _done(output)
            before = {name: (output / name).stat().st_mtime_ns for name in outputs_of(output) if name in reference}
            if kind == "full disk":
                subprocess.run(["mount", "-o", "remount,size=64m", str(output)], check=True)
            status, said, complained = finish(start(inputs, output))
            after = outputs_of(output)
            if status:
                problems.append(f"{kind}, resumed: status {status}: {complained[-300:]}")
            elif after != reference:
                wrong = [name for name in {*after, *reference} if after.get(name) != reference.get(name)]
                problems.append(f"{kind}, resumed: differs from a run without a fault in {sorted(wrong)[:5]}")
            skipped = json.loads(said.splitlines()[-1])["skipped"] if not status and said else 0
            # What the index has as done is done: it is skipped, and its files stay as they are.
            lost += max(0, done - skipped)
            problems += [f"{kind}: {path.name} is left" for path in output.rglob("*.part")]
            lost += sum(name not in after for name in before)
            if kind == "full disk":
                subprocess.run(["umount", str(output)], check=True)
    return {**counts, "work lost": lost, "problems": problems}


def _done(output: Path) -> int:
    """How many inputs the index has as done, whose outputs are all there."""
    index = output / "resume.jsonl"
    done: dict[str, bool] = {}
    if index.exists():
        for line in index.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
                done[entry["target"]] = bool(entry.get("kinds"))
            except (ValueError, KeyError, TypeError):
                continue
    return sum(done.values())


def _mount(folder: Path) -> bool:
    """A disk of 300 kB at `folder`, where that is allowed."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(folder)]
    if os.name != "posix" or subprocess.run(words, capture_output=True).returncode:
        folder.rmdir()
        return False
    return True

"""The process that fuzzes, `python -m tools.fuzz.work`: whatever crashes it, its parent saves the input."""

from __future__ import annotations

import hashlib
import importlib
import mmap
import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tools.fuzz.readers import MOST, READERS, TOKENS, Reader, is_finding

# A file that parent and child see: how many inputs were tried, the length of the current one, and its bytes.
COUNT, LENGTH, DATA = slice(0, 8), slice(8, 16), 16
SIZE = DATA + MOST
MEMORY = 4 << 30  # bytes


class Board:
    """What is tried now, in a file in memory, so that it outlives a crash."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SIZE)

    @property
    def count(self) -> int:
        """How many inputs were tried."""
        return int.from_bytes(self._map[COUNT], "little")

    @property
    def current(self) -> bytes:
        """The last one."""
        return bytes(self._map[DATA : DATA + int.from_bytes(self._map[LENGTH], "little")])

    def begin(self, data: bytes) -> None:
        """Note the next input."""
        self._map[LENGTH] = len(data).to_bytes(8, "little")
        self._map[DATA : DATA + len(data)] = data
        self._map[COUNT] = (self.count + 1).to_bytes(8, "little")


def save(folder: Path, reader: Reader, data: bytes, what: str) -> None:
    """Keep an input that was found, and what became of it; one for each place in the code."""
    name = hashlib.sha256(what.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    case = folder / f"{reader.name}-{name}.bin"
    if not case.exists():
        case.write_bytes(data)
        case.with_suffix(".txt").write_text(what)


def place_of(error: Exception) -> str:
    """Where an exception comes from, without its text: the same fault is found many times."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return f"{type(error).__name__} " + " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)


def mutate(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """A few changes: bits, bytes, blocks, words of the formats, parts of another seed."""
    changed = bytearray(data)
    for _ in range(1 << draw.randrange(4)):
        at, length = draw.randrange(len(changed) + 1), 1 << draw.randrange(6)
        way = draw.randrange(7)
        if way == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif way == 1 and at < len(changed):
            changed[at] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        elif way == 2:
            del changed[at : at + length]
        elif way == 3:
            changed[at:at] = changed[at : at + length]
        elif way == 4:
            changed[at : at + draw.choice((0, 4))] = draw.choice(TOKENS)
        elif way == 5:
            other = draw.choice(others)
            begin = draw.randrange(len(other) + 1)
            changed[at : at + length] = other[begin : begin + length]
        elif draw.random() < 0.2:
            del changed[at:]
    return bytes(changed[:MOST])


def main(name: str, seconds: float, board: Board, cases: Path, coverage: bool, seed: int) -> None:
    """Fuzz one reader until the time is over."""
    end = time.monotonic() + seconds
    reader = READERS[name]

    def one(data: bytes) -> None:
        board.begin(data)
        error = is_finding(reader, data)
        if error is not None:
            save(cases, reader, data, place_of(error))

    seeds = reader.seeds()
    draw = random.Random(seed)
    if coverage:
        atheris: Any = importlib.import_module("atheris")
        with atheris.instrument_imports(include=list(reader.modules)):
            for module in reader.modules:
                importlib.import_module(module)
            for data in seeds:  # imports what readers import when they are called
                one(data)
        corpus = cases / f"corpus-{name}"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(seeds):
            (corpus / f"seed{number}").write_bytes(data)
        options = [f"-max_total_time={max(1, int(seconds))}", f"-max_len={MOST}", "-rss_limit_mb=0", f"-seed={seed}"]
        atheris.Setup([sys.argv[0], str(corpus), *options, "-timeout=60", "-handle_segv=0", "-handle_abrt=0"], one)
        atheris.Fuzz()
        return
    kept = list(seeds)
    for data in seeds:
        one(data)
    while time.monotonic() < end:
        data = mutate(draw.choice(kept), seeds, draw)
        one(data)
        if draw.random() < 0.02:  # mutations of mutations
            kept = [*kept[-500:], data]


if __name__ == "__main__":
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    os.environ["DIFFSEG_IN_PROCESS"] = "1"  # so that coverage is seen, and a crash is this process's
    chosen, time_left, file, folder, covers, number = sys.argv[1:]
    main(chosen, float(time_left), Board(Path(file)), Path(folder), covers == "1", int(number))

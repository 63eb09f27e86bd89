"""Jobs on Ray: do they restart exactly, how do they grow, what do they cost? `python -m tools.benchmark bulk`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.errors import DiffSegError
from runtime.terminal import check_extra
from tools.benchmark.bulking import STORE, draw_clips, draw_pictures, environment, list_of, open_tiny, parquet_of, run
from tools.benchmark.common import ROOT, in_fresh_process, machine, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST_SPEEDUP = 1.7
MOST_BYTES = 300  # of the driver's memory, for each row of a listed input
NOISE = 4 << 20  # bytes by which two runs of the same job differ
LEAST_SAME = 0.98  # of a clip's pixels
FEW, MANY = 1000, 50_000
SHARDS = 50  # of the restart
SLEEP = 0.05  # seconds a frame, of the engine's stand-in


class Part(str, Enum):
    """What may be measured."""

    restart = "restart"
    workers = "workers"
    memory = "memory"
    clips = "clips"
    simulation = "simulation"


def bulk(
    parts: Annotated[list[Part] | None, typer.Option("--part", help="What to measure; may be repeated. All.")] = None,
    images: Annotated[int, typer.Option(min=200, help="Of the restart.")] = 5000,
    rows: Annotated[int, typer.Option(min=2000, help="Of the simulation.")] = 1_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of lines.")] = False,
) -> None:
    """Do jobs on Ray restart exactly, how do they grow with workers, and what does the driver cost?

    restart: 5,000 small images on a cluster of three node processes, with a worker and then the driver killed: every
    image once, labels as runtime.segment gives them. workers: two workers against one, with a stand-in that sleeps
    (at least 1.7 times as fast) and with tiny. memory: of the driver for 1,000 and 50,000 rows, at most 300 bytes a
    row of a list. clips: identities of three clips in parts against those of a serial run, at least 98 % of the
    pixels. simulation: 1,000,000 rows without images. Exit 1: a bound is missed.
    """
    check_extra("bulk")
    measures = {
        Part.restart: lambda folder: measure_restart(folder, images),
        Part.workers: measure_workers,
        Part.memory: measure_memory,
        Part.clips: measure_clips,
        Part.simulation: lambda folder: measure_simulation(folder, rows),
    }
    report: dict[str, Any] = {"machine": machine()}
    missed: list[str] = []
    for part in parts or list(Part):
        say(part.value)
        with tempfile.TemporaryDirectory() as folder:
            report[part.value] = found = measures[part](Path(folder))
        missed += [f"{part.value}: {fault}" for fault in found.pop("missed")]
        if not as_json:
            for name, value in found.items():
                typer.echo(f"{part.value:>10}  {name}: {json.dumps(value)}")
    report["missed"] = missed
    if as_json:
        typer.echo(json.dumps(report))
    for fault in missed:
        say(f"MISSED: {fault}")
    raise typer.Exit(1 if missed else 0)


def measure_restart(folder: Path, images: int) -> dict[str, Any]:
    """A worker is killed, then the driver; what is there in the end."""
    from ray.cluster_utils import Cluster

    from runtime.bulk.finished import read_about
    from runtime.bulk.places import Place

    pictures, output = draw_pictures(folder / "in", images), folder / "out"
    node = {"num_cpus": 1, "object_store_memory": STORE // 2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        node.pop("include_dashboard")
        for _ in range(2):
            cluster.add_node(**node)
        command = [sys.executable, "-m", "runtime.bulk", str(pictures), "--output", str(output), "--json", "--workers"]
        command += ["2", "--cpus-per-worker", "0.75", "--threads", "1", "--shard-rows", str(images // SHARDS)]
        command += ["--address", cluster.address]
        shards = -(-images // (images // SHARDS))
        first = _start(command, folder / "first.log")
        _wait(output, shards // 5, first)
        last = max(output.glob("shard-*.parquet"), key=lambda path: path.stat().st_mtime)
        worker = int((read_about(Place.of(str(last))) or {})["worker"].rpartition(":")[2])
        os.kill(worker, signal.SIGKILL)
        say(f"worker {worker} killed after {_count(output)} of {shards} shards")
        _wait(output, shards // 2, first)
        first.kill()
        first.wait()
        before = {path.name: path.stat().st_mtime_ns for path in output.glob("shard-*.parquet")}
        say(f"driver killed after {len(before)} of {shards} shards")
        second = _start(command, folder / "second.log")
        printed = second.communicate()[0]
        if second.returncode:
            raise DiffSegError(f"the second run ended with {second.returncode}: {(folder / 'second.log').read_text()}")
    finally:
        cluster.shutdown()
    summary = json.loads(printed)
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("shard-*.parquet")}
    again = sum(after[name] != when for name, when in before.items())
    found = {"images": images, "shards": shards, "killed_after": len(before), "summary": summary["shards"]}
    return found | _compare(pictures, output, folder, images, again)


def _compare(pictures: Path, output: Path, folder: Path, images: int, again: int) -> dict[str, Any]:
    """What is there once, and whether it is what runtime.segment gives."""
    import cv2
    import numpy as np

    from runtime.bulk import read

    labels, thresholds = folder / "labels", map(str, open_tiny().segmenter.config.thresholds)
    command = [sys.executable, "-m", "runtime.segment", str(pictures), "--output", str(labels), "--save", "labels"]
    command += ["--pieces", "keep", "--threshold", ",".join(thresholds), "--threads", "1"]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, stderr=subprocess.DEVNULL)
    seen: Counter[str] = Counter()
    same = 0
    for name, result in read(str(output), errors="give"):
        seen[name] += 1
        if isinstance(result, DiffSegError):
            continue
        expected = cv2.imread(str(labels / f"{Path(name).stem}_labels.png"), cv2.IMREAD_UNCHANGED)
        same += int(expected is not None and np.array_equal(expected, result.labels))
    once = sum(count == 1 for count in seen.values())
    missed = []
    if (once, len(seen)) != (images, images):
        missed.append(f"{once} of {images} images are there once, {len(seen)} at all")
    if same != images:
        missed.append(f"{same} of {images} have the labels of runtime.segment")
    if again:
        missed.append(f"{again} finished shards were written again")
    return {"once": once, "same_labels": same, "shards_written_again": again, "missed": missed}


def measure_workers(folder: Path) -> dict[str, Any]:
    """Images a second with one and with two workers of one thread."""
    pictures = draw_pictures(folder / "in", 400)
    found: dict[str, Any] = {}
    for engine, sleep in (("labels", SLEEP), ("tiny", 0.0)):
        rates = {}
        for workers in (1, 2):
            output = str(folder / f"{engine}-{workers}")
            done = _run([str(pictures)], output, workers, engine, sleep, 10)
            rates[workers] = {"steady": round(done["steady"], 2), "whole": done["summary"]["now"]["per_second"]}
        found["stand-in" if sleep else engine] = rates
        found["stand-in_speedup" if sleep else f"{engine}_speedup"] = round(rates[2]["steady"] / rates[1]["steady"], 3)
    speedup = found["stand-in_speedup"]
    missed = [] if speedup >= LEAST_SPEEDUP else [f"two workers are {speedup} times as fast, wanted {LEAST_SPEEDUP}"]
    return found | {"missed": missed}


def measure_memory(folder: Path) -> dict[str, Any]:
    """The driver's memory for few rows and for many, of a list and of Parquet files."""
    found: dict[str, Any] = {}
    missed = []
    for kind, bound in (("list", MOST_BYTES * (MANY - FEW)), ("parquet", 0)):
        most = {}
        for count in (FEW, MANY):
            given = list_of(folder, count) if kind == "list" else parquet_of(folder, count)
            # As many shards of both: what Ray holds for a shard is not held for a row.
            done = _run([given], str(folder / f"{kind}-{count}"), 2, "labels", 0.0, count // 50, True)
            most[count] = done["memory"]
        grown = (most[MANY] - most[FEW]) * 2**20
        found[kind] = {"MB": {k: round(v, 1) for k, v in most.items()}, "bytes_a_row": round(grown / (MANY - FEW), 1)}
        if grown > bound + NOISE:
            missed.append(f"{kind}: the driver grew by {grown / 2**20:.1f} MB, allowed {(bound + NOISE) / 2**20:.1f}")
    return found | {"missed": missed}


def measure_clips(folder: Path) -> dict[str, Any]:
    """Identities of clips in parts, against those of one run from beginning to end."""
    import numpy as np

    from runtime.bulk.reader import read_rows
    from runtime.bulk.rows import labels_of

    clips = draw_clips(folder / "clips")
    output = folder / "out"
    done = _run([str(clips)], str(output), 2, "tiny", 0.0, None, False, [80, 40])
    found: dict[str, Any] = {"parts": done["summary"]["shards"]["all"], "frames": done["summary"]["frames"]}
    shares = {}
    for clip in sorted(clips.iterdir()):
        serial = in_fresh_process(serial_labels, str(clip), str(folder / f"{clip.stem}.npz"))
        with np.load(serial) as kept:
            expected = kept["labels"]
        rows = [row for row in read_rows(str(output)) if row["id"].startswith(f"{clip.name}#")]
        if [row["frame"] for row in rows] != list(range(len(expected))):
            raise DiffSegError(f"{clip.name}: expected {len(expected)} frames once, found {len(rows)}")
        shares[clip.name] = round(same_share(np.stack([labels_of(row) for row in rows]), expected), 4)
    missed = [f"{name}: {share} of the pixels" for name, share in shares.items() if share < LEAST_SAME]
    return found | {"same": shares, "missed": missed}


def serial_labels(clip: str, kept: str) -> str:
    """Identities of a clip's frames, int32 [F, H, W], in a .npz; its path."""
    import numpy as np

    from runtime.bulk.cutting import frames_of, opened

    segmenter = open_tiny().segmenter
    with opened(clip) as source:
        results = segmenter.stream(frame.image for frame in frames_of(source))
        np.savez_compressed(kept, labels=np.stack([result.labels for result in results]))
    return kept


def same_share(found: NDArray[np.int32], expected: NDArray[np.int32]) -> float:
    """Share of the pixels with the same identity, after the best one-to-one matching over the whole clip."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    table = np.zeros((int(found.max()) + 1, int(expected.max()) + 1), np.int64)
    np.add.at(table, (found.ravel(), expected.ravel()), 1)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / found.size)


def measure_simulation(folder: Path, rows: int) -> dict[str, Any]:
    """What a job of many rows costs beside the engine: listing, shards, files, the driver, a restart, reading."""
    import pyarrow.parquet as pq

    given, output = list_of(folder, rows), folder / "out"
    first = _run([given], str(output), 2, "labels", 0.0, 1000, True)
    again = _run([given], str(output), 2, "labels", 0.0, 1000, True)
    begun = time.perf_counter()
    ids: set[int] = set()
    count = 0
    for path in sorted(output.glob("shard-*.parquet")):
        names = pq.read_table(path, columns=["id"])["id"].to_pylist()
        count += len(names)
        ids.update(map(hash, names))
    size = sum(path.stat().st_size for path in output.glob("shard-*.parquet"))
    shards = first["summary"]["shards"]["all"]
    found = {
        "rows": count,
        "different": len(ids),
        "shards": shards,
        "seconds": round(first["seconds"], 1),
        "working_seconds": first["summary"]["now"]["seconds"],
        "rows_a_second": first["summary"]["now"]["per_second"],
        "driver": {
            "processor_seconds": round(first["processor"], 1),
            "ms_a_shard": round(1e3 * first["processor"] / shards, 2),
            "most_MB": round(first["memory"], 1),
        },
        "files": sum(path.is_file() for path in output.rglob("*")),
        "manifest_bytes_a_row": round(sum(p.stat().st_size for p in (output / "_diffseg").iterdir()) / rows, 1),
        "shard_bytes_a_row": round(size / rows, 1),
        "restart_seconds": round(again["seconds"], 1),
        "redone": again["summary"]["shards"]["now"],
        "ids_read_seconds": round(time.perf_counter() - begun, 1),
    }
    missed = []
    if (count, len(ids), again["summary"]["shards"]["now"]) != (rows, rows, 0):
        missed.append(f"{count} rows and {len(ids)} ids of {rows}, {again['summary']['shards']['now']} shards redone")
    return found | {"missed": missed}


def _run(*arguments: Any) -> Any:
    return in_fresh_process(run, *arguments, environment=environment())


def _start(command: list[str], log: Path) -> subprocess.Popen[str]:
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=file, text=True)


def _count(output: Path) -> int:
    return len(list(output.glob("shard-*.parquet")))


def _wait(output: Path, shards: int, process: subprocess.Popen[str]) -> None:
    while _count(output) < shards:
        if process.poll() is not None:
            raise DiffSegError(f"the job ended with {process.returncode} after {_count(output)} shards")
        time.sleep(0.2)

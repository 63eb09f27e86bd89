"""Jobs of `runtime.bulk` with stand-ins for the engine or for all the work on an image, for `bulk` of the benchmark."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.benchmark.common import resident

if TYPE_CHECKING:
    from runtime.bulk.batch import SegmentBatch
    from runtime.bulk.manifest import Job
    from runtime.bulk.places import Place

STORE = 200 << 20  # bytes of Ray's object store


def open_stand_in(engine: str, sleep: float) -> SegmentBatch:
    """The map function on `tools.benchmark.streams.open_segmenter`: a worker's engine."""
    from runtime.bulk.batch import SegmentBatch
    from tools.benchmark.streams import open_segmenter

    return SegmentBatch(open_segmenter(engine, sleep))


def open_tiny() -> SegmentBatch:
    """The embedded engine's merge on one thread."""
    from runtime.bulk.batch import SegmentBatch
    from runtime.engine.registry import open_engine
    from runtime.segmenter import Segmenter

    return SegmentBatch(Segmenter(open_engine(None, "cpu", threads=1)))


def run(
    inputs: list[str],
    output: str,
    workers: int,
    engine: str = "tiny",
    sleep: float = 0.0,
    rows: int | None = None,
    canned: bool = False,
    cut: list[int] | None = None,
) -> dict[str, Any]:
    """A job from beginning to end: its summary, the driver's most anonymous memory in MB, its processor seconds.

    `canned`: no image is read; its row is one of some real ones.
    """
    from runtime.bulk.cluster import Resources
    from runtime.bulk.run import Request, run_job
    from runtime.bulk.shard import do_shard

    opened = open_tiny if engine == "tiny" else functools.partial(open_stand_in, engine, sleep)
    request = Request(
        inputs,
        output,
        shard_rows=rows,
        clips=None if cut is None else (cut[0], cut[1]),
        resources=Resources(workers, 0.5, store=STORE, dashboard=False),
    )
    begun, spent = time.perf_counter(), time.process_time()
    with _most_memory() as most:
        summary = run_job(request, opened, print_nothing, do_canned if canned else do_shard)
    return {
        "summary": summary,
        "memory": most[0],
        "seconds": time.perf_counter() - begun,
        "processor": time.process_time() - spent,
        "steady": steady_rate(Path(output), workers),
    }


def print_nothing(line: str) -> None:
    """Takes a line for people."""


def steady_rate(output: Path, workers: int) -> float:
    """Images a second between the first shard of each worker and the last shard of all: without the start."""
    import pyarrow.parquet as pq

    shards = sorted(output.glob("shard-*.parquet"), key=lambda path: path.stat().st_mtime)
    if len(shards) <= workers + 1:
        return 0.0
    rows = sum(pq.ParquetFile(path).metadata.num_rows for path in shards[workers:])
    return rows / (shards[-1].stat().st_mtime - shards[workers - 1].stat().st_mtime)


def do_canned(
    job: Job, output: Place, shard: int, segment: SegmentBatch, decoded: object = None, most: int | None = None
) -> dict[str, Any]:
    """As `runtime.bulk.shard.do_shard`, without reading and segmenting an image."""
    from runtime.bulk.reading import images_of
    from runtime.bulk.shard import write_shard

    begun = time.perf_counter()
    found = _canned(segment)
    rows = [
        segment.empty(row) | found[number % len(found)] | {"path": row["path"]}
        for number, row in enumerate(images_of(job, shard))
    ]
    return write_shard(job, output, shard, rows, begun)


_kept: list[dict[str, Any]] = []


def _canned(segment: SegmentBatch) -> list[dict[str, Any]]:
    """What real labels are in a row, without id and path: of drawn scenes, for the time of the process."""
    from runtime.bulk.rows import result_row
    from runtime.result import Result
    from tools.scenes.draw import draw_scene

    for seed in range(0 if _kept else 64):
        labels = draw_scene(seed, (240, 320)).mask
        _kept.append(result_row(Result(labels, int(labels.max()) + 1, {"total": 50.0})))
    return _kept


@contextmanager
def _most_memory() -> Iterator[list[float]]:
    """The most anonymous memory of this process, in MB, sampled ten times a second; none of Ray's shared memory."""
    most, ended = [resident("RssAnon")], threading.Event()

    def sample() -> None:
        while not ended.wait(0.1):
            most[0] = max(most[0], resident("RssAnon"))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def environment() -> dict[str, str]:
    """Of a job's process: its workers find these packages."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def draw_pictures(folder: Path, count: int) -> Path:
    """Small JPEGs, all different: parts of drawn scenes."""
    import cv2
    import numpy as np

    from tools.scenes.draw import draw_scene

    folder.mkdir()
    scenes = [draw_scene(seed, (240, 320)).frame for seed in range(20)]
    for number in range(count):
        top, left = np.random.default_rng(number).integers(0, (112, 160))
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), scenes[number % 20][top : top + 128, left : left + 160])
    return folder


def draw_clips(folder: Path) -> Path:
    """Three clips of moving drawn scenes: two of one scene, one of two."""
    from runtime.outputs.form import ClipForm
    from runtime.outputs.movie import VideoSink
    from tools.benchmark.streams import RATE
    from tools.scenes.moving import draw_moving_scene

    folder.mkdir()
    for name, seeds in (("one", (0,)), ("two", (1,)), ("cut", (2, 3))):
        scenes = [draw_moving_scene(seed, (240, 320), split="test") for seed in seeds]
        sink = VideoSink(folder / f"{name}.mp4", ClipForm(RATE, 1 / RATE))
        for number in range(200):
            scene = scenes[0 if number < 110 else -1]
            sink.write(number, number / RATE, scene.frame(30 - abs(number % 60 - 30)))
        sink.close()
    return folder


def list_of(folder: Path, rows: int) -> str:
    """A list of pictures that do not exist."""
    path = folder / f"{rows}.txt"
    with path.open("w") as file:
        file.writelines(f"/data/photographs/{number // 1000:05d}/{number:012d}.jpg\n" for number in range(rows))
    return str(path)


def parquet_of(folder: Path, rows: int) -> str:
    """A Parquet file of pictures that are none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"{rows}.parquet"
    pq.write_table(
        pa.table({"id": [str(n) for n in range(rows)], "bytes": [b"picture"] * rows}), path, row_group_size=1000
    )
    return str(path)

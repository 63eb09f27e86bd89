"""Drawn pictures in a folder, and the map function on an engine that takes no time."""

import cv2
import pytest

from runtime.segmenter import Segmenter
from tests.runtime.clips import StandIn, draw

pytest.importorskip("pyarrow")
pytest.importorskip("pycocotools")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Five drawn pictures, two of them in a folder below, and the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    for number in range(5):
        cv2.imwrite(str(folder / ("below" if number > 2 else "") / f"{number}.png"), draw(5 * number))
    return folder


@pytest.fixture
def segment():
    """Segments by brightness."""
    from runtime.bulk import SegmentBatch

    return SegmentBatch(Segmenter(StandIn()))


@pytest.fixture
def here(monkeypatch, segment):
    """Jobs without Ray: shards one after the other in this process. `here(inputs, ...)` does one; its summary."""
    from contextlib import nullcontext

    from runtime.bulk import run
    from runtime.bulk.manifest import read_job
    from runtime.bulk.places import Place
    from runtime.errors import NoMoreSpace, as_one_line

    monkeypatch.setattr(run, "cluster", lambda resources, say: nullcontext())
    monkeypatch.setattr(
        run,
        "describe",
        lambda resources, opened: {"engine": opened().engine, "made": opened().made, "settings": opened().settings},
    )

    def run_shards(shards, resources, output, opened, work, **more):
        place = Place.of(output)
        for shard in shards:
            try:
                report = work(read_job(place), place, shard, opened(), **more) | {"failed": None, "full": False}
            except Exception as error:
                full = isinstance(error, NoMoreSpace)
                report = {"shard": shard, "failed": str(as_one_line(error, "shard")), "full": full}
            yield report

    monkeypatch.setattr(run, "run_shards", run_shards)
    monkeypatch.setattr("runtime.bulk.clips.run_shards", run_shards)
    for module in ("cutting", "clips"):
        monkeypatch.setattr(
            f"runtime.bulk.{module}.in_tasks", lambda function, calls, resources: (function(*one) for one in calls)
        )

    def job(inputs, output="out", opened=None, **options):
        inputs = [inputs] if isinstance(inputs, str) else inputs
        request = run.Request(inputs, output, **options)
        return run.run_job(request, lambda: opened or segment, print)

    return job

"""Ray: what is checked before it starts, and jobs on a cluster that the command starts by itself."""

import functools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.bulk.cluster import Resources, check_address, check_room
from runtime.errors import DiffSegError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("resources", "nodes", "message"),
    [
        (Resources(2, 1), [{"CPU": 2}], "expected 1 processor more than they take, which decodes, found 0"),
        (Resources(4, 1), [{"CPU": 2}], "expected nodes with room for all of them.*found room for 2"),
        (Resources(1, 4), [{"CPU": 3}, {"CPU": 3}], "found room for 0 .2 nodes, 6 processors and 0 GPUs"),
        (Resources(2, 1, 1), [{"CPU": 8, "GPU": 1}], "1 processors and 1 GPUs each, found room for 1"),
        (Resources(1, 0, 1), [{"CPU": 8}], "found room for 0"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused(resources, nodes, message):
    with pytest.raises(DiffSegError, match=message) as caught:
        check_room(resources, nodes)
    assert str(caught.value).startswith(f"--workers {resources.workers}: ")


def test_a_cluster_with_room_is_taken():
    check_room(Resources(2, 0.5), [{"CPU": 2}])
    check_room(Resources(3, 1, 0.5), [{"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1}])
    check_room(Resources(2, 0, 1), [{"CPU": 1, "GPU": 2}])


def test_an_address_without_a_cluster_is_refused_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(DiffSegError, match=r"expected a Ray cluster, found none .*; start one with 'ray start"):
            check_address(f"127.0.0.1:{free.getsockname()[1]}")
    for text in ("host", "ray://host:10001", "host:port", ""):
        with pytest.raises(DiffSegError, match="--address: expected HOST:PORT"):
            check_address(text)
    check_address("auto")


def bulk(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "runtime.bulk", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--save", "nothing"), "--save: expected some of"),
        (("--clips", "--save", "labels"), "--save: of clips there are Parquet shards alone"),
        (("--clips", "--cut", "10", "--overlap", "10"), "--overlap: expected fewer frames than --cut 10, found 10"),
        (("--threshold", "high"), "--threshold: expected numbers"),
    ],
)
def test_bad_usage_is_one_line(tmp_path, arguments, message):
    pytest.importorskip("ray")
    done = bulk(tmp_path, "--output", tmp_path / "out", *arguments)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_more_workers_than_one_machine_has_are_refused_before_ray_begins():
    from runtime.bulk.cluster import cluster

    with pytest.raises(DiffSegError, match="--workers: expected at most 1000 on one machine, found 1001"):
        cluster(Resources(workers=1001), print).__enter__()


@pytest.mark.proof
def test_the_command_on_a_cluster_of_its_own(pictures):
    """Ray starts, decodes and works in processes of its own; bad images are rows; the second run does nothing."""
    pytest.importorskip("ray")
    from runtime.bulk import read

    (pictures / "bad.jpg").write_bytes(b"no picture")
    output = pictures.parent / "out"
    command = (pictures, "--output", output, "--json", "--object-store", 100, "--shard-rows", 2, "--workers", 2)
    command = (*command, "--cpus-per-worker", 0.5, "--save", "labels")
    done = bulk(*command)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["images"], summary["errors"], summary["shards"]["now"]) == (6, 1, 3)
    address = re.search(r"Ray's dashboard: (http://[\d.:]+)", done.stderr)
    assert address and "error: " in done.stderr and "6 images, 1 errors" in done.stderr
    with_tiny = dict(read(str(output)))
    assert len(with_tiny) == 5 and all(np.unique(result.labels).size == result.count for result in with_tiny.values())
    again = json.loads(bulk(*command).stdout)
    assert again["shards"] == {"all": 3, "before": 3, "now": 0}
    other = bulk(*command, "--threshold", "0.9")
    assert other.returncode == 1 and "has a job with auto True, found False; thresholds" in other.stderr
    assert "Traceback" not in other.stderr


@pytest.mark.proof
def test_a_shard_whose_workers_end_again_and_again_does_not_hold_up_the_others(pictures, monkeypatch):
    pytest.importorskip("ray")
    from runtime.bulk import SegmentBatch, read
    from runtime.bulk.run import Request, run_job
    from runtime.bulk.shard import do_shard

    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def deadly(job, output, shard, *more, **options):
        if shard == 1:
            os._exit(1)
        return do_shard(job, output, shard, *more, **options)

    opened = functools.partial(SegmentBatch, device="cpu", options={"threads": 1})
    there = Resources(2, 0.5, store=100 << 20, dashboard=False)
    request = Request(["in"], "out", shard_rows=1, resources=there)
    summary = run_job(request, opened, print, deadly)
    assert "1 shards were not finished, for their workers ended again and again" in summary["stopped"]
    assert summary["shards"] == {"all": 5, "before": 0, "now": 4} and len(dict(read("out"))) == 4
    again = run_job(request, opened, print)
    assert (again["stopped"], again["shards"]["now"], len(dict(read("out")))) == (None, 1, 5)


@pytest.mark.proof
def test_the_map_function_in_somebodys_own_pipeline(pictures):
    pytest.importorskip("ray")
    import ray
    import ray.data

    from runtime.bulk import SegmentBatch

    there = {"env_vars": {"PYTHONPATH": str(ROOT)}}  # where this project is not installed
    ray.init(address="local", num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, runtime_env=there)
    try:
        rows = ray.data.from_items([{"path": str(path)} for path in sorted(pictures.rglob("*.png"))])
        found = rows.map_batches(
            SegmentBatch,
            fn_constructor_kwargs={"device": "cpu", "options": {"threads": 1}},
            batch_size=2,
            num_cpus=0.5,
            compute=ray.data.ActorPoolStrategy(size=1),
        ).take_all()
    finally:
        ray.shutdown()
    assert len(found) == 5 and all(row["count"] >= 1 and row["error"] is None for row in found)

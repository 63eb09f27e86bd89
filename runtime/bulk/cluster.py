"""Ray: a cluster, workers that each hold an engine, tasks that decode for them. Nothing else here imports Ray."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bulk.batch import SegmentBatch, decode
from runtime.bulk.manifest import Job, read_job
from runtime.bulk.places import Place
from runtime.bulk.shard import Pieces, do_shard
from runtime.errors import DiffSegError, NoMoreSpace, as_one_line

AHEAD = 4  # lists of images that are decoded for a worker before it asks
DECODER = 0.5  # processors of a task that decodes
SPARE = 1.0  # processors that must be left for such tasks
TRIES = 3  # times that Ray does a shard again whose worker has ended
MOST_HERE = 1000  # workers of one machine; Ray itself ends in a native trace
IN_TASKS = 64  # tasks that may run or wait at once
BLOCKS = 10_000  # lists of shards that Ray is given: each has a state of some kilobytes in the driver
Open = Callable[[], SegmentBatch]


@dataclass(frozen=True, slots=True)
class Resources:
    """What a job takes of a cluster.

    Attributes:
        workers: processes with an engine each. `cpus`, `gpus`: of each, shares allowed.
        address: of a cluster, HOST:PORT or "auto"; None: one is started on this machine, and stopped at the end.
        store: bytes of the object store of one that is started; None: Ray's own choice.
        dashboard: whether one that is started has Ray's dashboard.
    """

    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None
    store: int | None = None
    dashboard: bool = True


@contextlib.contextmanager
def cluster(resources: Resources, say: Callable[[str], None]) -> Iterator[None]:
    """In the body Ray is there. Raises DiffSegError where no cluster is at the address, or it is too small."""
    import logging

    if resources.address is None and resources.workers > MOST_HERE:
        raise DiffSegError(
            f"--workers: expected at most {MOST_HERE} on one machine, found {resources.workers}; lower it, or name "
            "a cluster by --address"
        )

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if resources.address is None:
        # What the machine has does not count: workers and decoders share it as the system sees fit.
        processors = math.ceil(resources.workers * resources.cpus + max(SPARE, DECODER * 2 * resources.workers))
        # Without this Ray would join any cluster that it finds on the machine.
        options |= {"address": "local", "num_cpus": processors, "include_dashboard": resources.dashboard}
        if resources.store is not None:
            options["object_store_memory"] = resources.store
    else:
        check_address(resources.address)
        options["address"] = resources.address
    try:
        with _quiet():
            context = ray.init(**options)
    except Exception as error:
        raise DiffSegError(
            f"Ray: expected a cluster, found none ({' '.join(str(error).split())[:200]}); start one with 'ray start "
            "--head', or leave --address out"
        ) from None
    try:
        if context.dashboard_url:
            token = Path.home() / ".ray" / "auth_token"
            say(f"Ray's dashboard: http://{context.dashboard_url}" + (f" (token in {token})" if token.exists() else ""))
        check_room(resources, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """In the body nothing is said on stderr: Ray's libraries say there how much they say. Errors are raised."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def check_address(address: str) -> None:
    """Raise DiffSegError where nothing listens at HOST:PORT: Ray itself would try for a minute."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdecimal():
        raise DiffSegError(
            f"--address: expected HOST:PORT of a cluster's head (6379 as a rule) or auto, found {address!r}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DiffSegError(
            f"--address {address}: expected a Ray cluster, found none ({reason}); start one "
            "with 'ray start --head --port 6379', or leave --address out"
        ) from None


def check_room(resources: Resources, nodes: Sequence[dict[str, float]]) -> None:
    """Raise DiffSegError where a cluster has too little for all workers and for decoding: they would wait for ever."""
    cpus, gpus = resources.cpus, resources.gpus
    fits = 0
    for node in nodes:
        shares = [node.get("CPU", 0.0) / cpus if cpus else math.inf, node.get("GPU", 0.0) / gpus if gpus else math.inf]
        fits += int(min(*shares, resources.workers))
    free = sum(node.get("CPU", 0.0) for node in nodes) - resources.workers * cpus
    found = f"{sum(n.get('CPU', 0.0) for n in nodes):g} processors and {sum(n.get('GPU', 0.0) for n in nodes):g} GPUs"
    if fits < resources.workers:
        raise DiffSegError(
            f"--workers {resources.workers}: expected nodes with room for all of them, {cpus:g} processors and "
            f"{gpus:g} GPUs each, found room for {fits} ({len(nodes)} nodes, {found}); lower --workers, "
            "--cpus-per-worker or --gpus-per-worker"
        )
    if free < SPARE:
        raise DiffSegError(
            f"--workers {resources.workers}: expected {SPARE:g} processor more than they take, which decodes, found "
            f"{free:g} ({found}); lower --workers or --cpus-per-worker"
        )


def describe(resources: Resources, open_batch: Open) -> dict[str, Any]:
    """`engine`, `made` and `settings` of a worker's engine. Raises DiffSegError where none can be opened."""
    import ray

    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=1)(_describe)
    try:
        found: dict[str, Any] = ray.get(task.remote(open_batch))
    except Exception as error:
        raise DiffSegError(f"a worker ended while it opened the engine ({_cause(error)})") from None
    if "failed" in found:
        raise DiffSegError(found["failed"])
    return found


def _describe(open_batch: Open) -> dict[str, Any]:
    try:
        batch = open_batch()
    except Exception as error:
        return {"failed": str(as_one_line(error, "the engine"))}
    return {"engine": batch.engine, "made": batch.made, "settings": batch.settings}


def run_shards(
    shards: Sequence[int],
    resources: Resources,
    output: str,
    open_batch: Open,
    work: Callable[..., dict[str, Any]] = do_shard,
    **more: Any,
) -> Iterator[dict[str, Any]]:
    """What `work` reports of each shard, as they are finished; of one that failed `shard` and `failed`, a line.

    Shards whose workers have ended again and again are left out. `more`: for `work`.
    """
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    context.print_on_execution_start = False
    if hasattr(context, "execution_no_progress_timeout_s"):
        context.execution_no_progress_timeout_s = -1  # a shard of a large network on a CPU takes an hour
    rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=min(len(shards), BLOCKS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of max_task_retries, which has no other place yet
        reports = rows.map_batches(
            ShardWorker,
            fn_constructor_args=(output, open_batch, work, more),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=resources.workers, max_tasks_in_flight_per_actor=2),
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_task_retries=TRIES,
        )
    for batch in reports.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def in_tasks(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], resources: Resources) -> Iterator[Any]:
    """What a function gives for each call, in their order; some run ahead, in tasks of Ray. Raises DiffSegError."""
    import ray
    from ray.exceptions import RayError

    task = ray.remote(num_cpus=DECODER, max_retries=TRIES)(function)
    waiting: deque[Any] = deque()
    for arguments in [*calls, *[None] * IN_TASKS]:
        if arguments is not None:
            waiting.append(task.remote(*arguments))
        if waiting and (arguments is None or len(waiting) > IN_TASKS):
            try:
                yield ray.get(waiting.popleft())
            except RayError as error:
                raise DiffSegError(f"a task of {function.__name__} ended ({_cause(error)}); start again") from None


class ShardWorker:
    """What Ray Data maps shards with: one engine, in a process of its own."""

    def __init__(
        self, output: str, open_batch: Open, work: Callable[..., dict[str, Any]], more: dict[str, Any]
    ) -> None:
        self._output, self._open, self._work, self._more = Place.of(output), open_batch, work, more
        self._job: Job | None = None
        self._segment: SegmentBatch | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """`shard` [1] → the report, in columns."""
        shard = int(batch["shard"][0])
        report: dict[str, Any] = {"shard": shard, "rows": 0, "errors": 0, "segments": 0, "seconds": 0.0, "told": []}
        failed, full = None, False
        try:
            self._job = self._job or read_job(self._output)
            self._segment = self._segment or self._open()
            report |= self._work(self._job, self._output, shard, self._segment, decode_apart, **self._more)
        except Exception as error:
            failed, full = str(as_one_line(error, f"shard {shard}")), isinstance(error, NoMoreSpace)
        report |= {"failed": failed, "full": full}
        return {name: [value] for name, value in report.items()}


def decode_apart(pieces: Pieces, size: tuple[int, int] | None, most: int | None) -> Pieces:
    """Decode in tasks of Ray, some pieces ahead, wherever there are processors."""
    import ray

    task = ray.remote(num_cpus=DECODER, max_retries=2)(decode)
    waiting: deque[tuple[list[dict[str, Any]], Any]] = deque()
    for piece in pieces:
        waiting.append((piece, task.remote(piece, size, most)))
        if len(waiting) > AHEAD:
            yield _decoded(task, *waiting.popleft(), size, most)
    while waiting:
        yield _decoded(task, *waiting.popleft(), size, most)


def _decoded(
    task: Any, piece: list[dict[str, Any]], found: Any, size: tuple[int, int] | None, most: int | None
) -> list[dict[str, Any]]:
    """What a task gives. Where it has ended too often, each image is decoded by itself: the one it ends on fails."""
    import ray
    from ray.exceptions import RayError

    try:
        rows: list[dict[str, Any]] = ray.get(found)
        return rows
    except RayError as error:
        if len(piece) == 1:
            reason = f"{piece[0]['id']}: the process that decoded it ended ({_cause(error)})"
            return [{"id": piece[0]["id"], "path": piece[0].get("path"), "error": reason}]
        return [row for one in piece for row in _decoded(task, [one], task.remote([one], size, most), size, most)]


def _cause(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]

"""Runs variants over a data set: in parallel processes, resumable, with the same figures in every run."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import DiffSegError
from runtime.files import DAMAGE, write_atomically
from tools.evaluate import metrics
from tools.evaluate.datasets import DataSet, Sample
from tools.evaluate.methods import Evaluator
from tools.evaluate.variants import Variant

PACKAGES = ("numpy", "opencv-python", "scipy", "scikit-image", "onnxruntime", "onnxruntime-gpu", "openvino")
REPOSITORY = Path(__file__).resolve().parents[2]
CODE = ("runtime/**/*.py", "tools/evaluate/*.py")
NO_FIGURES = ("__main__.py", "evaluate.py", "scenes.py", "report.py", "sheet.py")  # these only show figures

Record = dict[str, Any]


Task = tuple[int, list[int]]  # a sample's number, and the indices of variants


@dataclass(frozen=True, slots=True)
class Job:
    """The input of a process: the data set, the variants in the order of the table, and the device of the networks."""

    data: DataSet
    variants: tuple[Variant, ...]
    device: str = "cpu"
    backend: str | None = None


Work = Callable[[Job, Evaluator, Sample, list[int]], Any]


def measure(job: Job, evaluator: Evaluator, sample: Sample, wanted: list[int]) -> dict[int, Record]:
    """Records of the `wanted` variants, by their indices, on one image.

    A record has the means of covering, Rand index and variation of information over the annotators, the number of
    segments and, if the data set has classes, tp, fp and fn per class.
    Raises DiffSegError when the image or its truth cannot be used.
    """
    frame, truths = job.data.load(sample)
    records = {}
    classes = len(job.data.protocol.classes) or None
    for index in wanted:
        labels = evaluator.labels(job.variants[index], job.data, frame, truths)
        tables = [metrics.contingency(truth, labels, classes, classes or 0) for truth in truths]
        record: Record = {"image": sample.name, "segments": len(np.unique(labels)), "annotators": len(tables)}
        for name, figure in metrics.REGION_FIGURES.items():
            record[name] = float(np.mean([figure(table) for table in tables]))
        if classes:
            record |= {name: values.tolist() for name, values in asdict(metrics.assign(tables[0])).items()}
        records[index] = record
    return records


def run(
    job: Job, folder: Path, jobs: int, advance: Callable[[int], None] = lambda _: None
) -> tuple[list[list[Record]], dict[str, str]]:
    """Records per variant, in the order of the samples, and error messages by image name.

    Results of an earlier run in `folder`/runs are used again. A file there belongs to one variant with one data set,
    engine file, code and set of library versions; a line to one image and mask, as long as neither changes.
    `advance` is called with the number of finished images.
    Raises DiffSegError when an engine cannot be opened, or when a process dies.
    """
    stores = [_Store(folder / "runs" / f"{key}.jsonl") for key in _keys(job)]
    tasks = []
    stamps = {}
    for number, sample in enumerate(job.data.samples):
        stamps[sample.name] = _stamp(sample)
        wanted = [i for i, store in enumerate(stores) if store.get(sample.name, stamps[sample.name]) is None]
        if wanted:
            tasks.append((number, wanted))
    advance(len(job.data.samples) - len(tasks))
    failures: dict[str, str] = {}
    for number, outcome in in_processes(job, measure, tasks, jobs):
        name = job.data.samples[number].name
        if isinstance(outcome, str):
            failures[name] = outcome
        else:
            for index, record in outcome.items():
                stores[index].add(record, stamps[name])
        advance(1)
    names = [sample.name for sample in job.data.samples if sample.name not in failures]
    return [[store.known[name] for name in names] for store in stores], failures


def in_processes(job: Job, work: Work, tasks: list[Task], jobs: int) -> Iterator[tuple[int, Any]]:
    """Call `work` for every task (number of the sample, indices of variants); yield number and outcome in any order.

    An outcome of type str is the message of a DiffSegError. Every process uses one thread, so that figures depend
    neither on the number of processes nor on the number of cores.
    """
    jobs = min(jobs, len(tasks))
    with _one_thread():
        if jobs > 1:
            yield from _pooled(job, work, tasks, jobs)
            return
        _prepare(job)
        for task in tasks:
            yield _one(work, task)


def _pooled(job: Job, work: Work, tasks: list[Task], jobs: int) -> Iterator[tuple[int, Any]]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, _initialise, (job,))
    try:
        with _interruption_ignored():
            futures = [pool.submit(_one, work, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise DiffSegError(
            f"one of {jobs} processes died, perhaps for lack of memory; run again with fewer --jobs to continue"
        ) from None
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interruption_ignored() -> Iterator[None]:
    """Let processes that start meanwhile ignore Ctrl-C: this process stops them."""
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # signals can be set, and arrive, in the main thread only
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit OpenCV, and through the environment the merge and new processes, to one thread."""
    import cv2

    before, threads = os.environ.get("OMP_NUM_THREADS"), cv2.getNumThreads()
    os.environ["OMP_NUM_THREADS"] = "1"
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


_current: tuple[Job, Evaluator]


def _initialise(job: Job) -> None:
    import cv2

    cv2.setNumThreads(1)
    _prepare(job)


def _prepare(job: Job) -> None:
    global _current
    _current = job, Evaluator(job.device, job.backend)


def _one(work: Work, task: Task) -> tuple[int, Any]:
    job, evaluator = _current
    try:
        return task[0], work(job, evaluator, job.data.samples[task[0]], task[1])
    except DiffSegError as error:
        return task[0], str(error)


class _Store:
    """Records of one variant in a file, one line each, written at once; an incomplete last line is removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Record] = {}
        self._stamps: dict[str, str] = {}
        if not path.exists():
            return
        whole = b""
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
                self.known[entry["record"]["image"]] = entry["record"]
                self._stamps[entry["record"]["image"]] = entry["stamp"]
            except DAMAGE:
                continue
            whole += line
        if whole != path.read_bytes():
            write_atomically(path, whole)

    def get(self, name: str, stamp: str) -> Record | None:
        """The record of an image; None if there is none, or if its files have changed since."""
        return self.known.get(name) if self._stamps.get(name) == stamp else None

    def add(self, record: Record, stamp: str) -> None:
        """Keep a record, and append it to the file."""
        self.known[record["image"]], self._stamps[record["image"]] = record, stamp
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps({"stamp": stamp, "record": record}).encode() + b"\n")


def _stamp(sample: Sample) -> str:
    """A text that changes when the image or its mask changes."""
    # With the path, because the same name in another folder is another image.
    states = [(path.absolute(), path.stat()) for path in (sample.image, sample.mask)]
    return " ".join(f"{path} {state.st_size}-{state.st_mtime_ns}" for path, state in states)


def _keys(job: Job) -> list[str]:
    """A name per variant, which changes with everything that may change its figures."""
    common = hashlib.sha256(code_digest())
    protocol = asdict(job.data.protocol) | {"images": None, "published": None, "colours": None}
    colours = sorted(job.data.protocol.colours.items())
    about: list[Any] = [job.data.name, protocol, colours, sorted(job.data.ignore), job.device, job.backend]
    about += [[name, _version(name)] for name in PACKAGES]
    common.update(json.dumps(about, sort_keys=True).encode())
    engines = {path: _digest(path) for path in {variant.engine for variant in job.variants} if path}
    keys = []
    for variant in job.variants:
        own = asdict(variant) | {"engine": engines.get(variant.engine or "")}
        digest = hashlib.sha256(common.digest() + json.dumps(own, sort_keys=True).encode())
        keys.append(f"{variant.method}-{digest.hexdigest()[:16]}")
    return keys


def code_digest() -> bytes:
    """A digest that changes with the code that computes figures."""
    digest = hashlib.sha256()
    for pattern in CODE:
        for path in sorted(REPOSITORY.glob(pattern)):
            if path.name not in NO_FIGURES:
                digest.update(path.read_bytes())
    return digest.digest()


def _digest(engine: str) -> str:
    """SHA-256 of an engine file with its weights and its sidecar."""
    digest = hashlib.sha256()
    path = Path(engine)
    for part in (path, path.with_name(path.name + ".data"), path.with_name(path.name + ".json")):
        if part.is_file():
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

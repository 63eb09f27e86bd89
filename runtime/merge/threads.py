"""Threads of the merge: its own, each with a part of the tiles, while NumPy's matrix products are held to one."""

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
MOST_THREADS = 4  # each has sums of its own; more threads would wait for memory

_lock = threading.Lock()
_inside = 0
_limit: Any = None


@functools.cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold NumPy's matrix products to one thread.

    Threads do not make the products of small tiles faster, and make them up to 40 times slower when another program or
    the inference library keeps a core busy: OpenBLAS's workers wait for each other at every tile. The limit holds for
    the whole process, until the last thread that is inside leaves.
    """
    global _inside, _limit
    with _lock:
        if _inside == 0:
            _limit = _controller().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limit.restore_original_limits()


def usable_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count() -> int:
    """Threads of the merge: OMP_NUM_THREADS where it is set, or the cores this process may use; at most four."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    cores = usable_cores()
    return max(1, min(int(text) if text.isdecimal() else cores, cores, MOST_THREADS))


def add_in_threads(work: Callable[[Sequence[Item]], tuple[Any, ...]], items: Sequence[Item]) -> tuple[Any, ...]:
    """`work(items)`, a tuple of arrays that add up over the items, with a part of the items in every thread.

    The items are divided into the same parts for any number of threads, and the parts are added in order: sums are
    rounded in the same way in every run, on every machine.
    """
    parts = [items[part::MOST_THREADS] for part in range(min(MOST_THREADS, len(items)))]
    threads = min(thread_count(), len(parts))
    if threads < 2:
        return _added(map(work, parts))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        return _added(pool.map(work, parts))


def _added(found: Iterator[tuple[Any, ...]]) -> tuple[Any, ...]:
    first = next(found)
    for other in found:
        for total, part in zip(first, other, strict=True):
            total += part
    return first

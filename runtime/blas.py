"""Holding NumPy's matrix products to one thread while the merge runs."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_inside = 0
_limit: Any = None


@functools.cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Products of cache-sized tiles gain nothing from threads and lose up to 40 times where another program, or the
    inference library's own threads, keep a core busy: OpenBLAS's workers wait for each other at every tile.

    The limit is the process's; it is lifted when the last thread that is inside leaves.
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

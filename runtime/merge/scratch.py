"""Arrays that are used again, call after call: fresh memory costs milliseconds, since the system zeroes every page."""

import math
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST = 1 << 20  # numbers (4 MB): from this size on NumPy asks the system for huge pages
MOST_KEPT = 1 << 23  # numbers (32 MB): a larger array is given back

_local = threading.local()


def scratch(name: str, *shape: int) -> "NDArray[np.float32]":
    """An array float32 of any content. The next call with this name in this thread returns the same memory.

    The caller must be done with it by then, and must not return it.
    """
    size = math.prod(shape)
    if size > MOST_KEPT:
        return np.empty(shape, np.float32)
    kept: dict[str, NDArray[np.float32]] = _local.__dict__
    if name not in kept or kept[name].size < size:
        kept[name] = np.empty(max(size, LEAST), np.float32)
    return kept[name][:size].reshape(shape)

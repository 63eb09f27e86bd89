"""How near the merge is to the time of its own matrix products, which are the least that it has to do."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tools.benchmark.common import GRID, timed

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tools.benchmark.common import Maps

    Operands = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]

PHOTOS = ("chelsea", "astronaut", "coffee", "rocket")  # of scikit-image
PRODUCTS_RATIO, PRODUCTS_SIDE = 1.6, 32  # the bound, and the side of the embedded engine, where it is set


def products_ratio(
    pyramid: list[Maps], thresholds: tuple[float, ...], size: tuple[int, int], repeat: int
) -> dict[str, float]:
    """`segment_attention` and its matrix products alone, taking turns on one thread.

    Every product of one call is recorded with the shapes and strides of its operands, and then repeated on random
    numbers of the same shapes and strides.

    Returns the number of products, their GFLOP, and the medians of both times in milliseconds of processor time.
    """
    from runtime.merge.segment import segment_attention
    from runtime.pyramid.config import MergeConfig

    config = MergeConfig(thresholds, GRID)

    def whole() -> None:
        segment_attention(pyramid, config, size=size)

    whole()  # buffers are allocated
    operands = record_products(whole)
    times = [(timed(whole)[1], timed(lambda: multiply(operands))[1]) for _ in range(repeat)]
    total, alone = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return {
        "products": len(operands),
        "gflop": sum(2 * found.size * a.shape[-1] for a, _, found in operands) / 1e9,
        "products_ms": alone,
        "total_ms": total,
        "ratio": total / alone,
    }


def record_products(call: Callable[[], None]) -> list[Operands]:
    """Arrays like the operands and results of every matrix product of `call`, which are calls of `numpy.matmul`.

    All first operands share memory, and so do the second ones and the results: as in the merge, they are in the cache.
    """
    import numpy as np

    matmul = np.matmul
    layouts: list[list[tuple[tuple[int, ...], tuple[int, ...]]]] = []

    def record(a: NDArray[Any], b: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        found = np.asarray(matmul(a, b, out=out))
        layouts.append([(array.shape, array.strides) for array in (a, b, found)])
        return found

    with patch("numpy.matmul", record):
        call()
    rng = np.random.default_rng(0)
    pools = [
        rng.random(max(_extent(*layout) for layout in column), np.float32) for column in zip(*layouts, strict=True)
    ]
    strided = np.lib.stride_tricks.as_strided
    return [(strided(pools[0], *a), strided(pools[1], *b), strided(pools[2], *found)) for a, b, found in layouts]


def multiply(operands: list[Operands]) -> None:
    """Run the products, one after the other."""
    import numpy as np

    for a, b, out in operands:
        np.matmul(a, b, out=out)


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many float32 numbers an array reaches over."""
    return 1 + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) // 4


def photo_pyramids() -> dict[str, tuple[list[Maps], tuple[float, ...]]]:
    """Maps of the embedded engine for photographs, and its thresholds; none without scikit-image or a library."""
    try:
        from skimage import data
    except ImportError:
        return {}
    import numpy as np

    from runtime.engine.registry import open_engine
    from runtime.errors import DiffSegError
    from runtime.frames.resize import resize_frame

    try:
        engine = open_engine(device="cpu")
    except DiffSegError:
        return {}
    spec = engine.spec
    found = {}
    for name in PHOTOS:
        frame = np.ascontiguousarray(getattr(data, name)()[..., ::-1])
        maps = engine.infer(resize_frame(frame, spec.height, spec.width)[None])
        found[name] = [np.asarray(level[0], np.float32) for level in maps], spec.thresholds
    return found

"""Calls of the merge core for GPUs: finds or builds the library, keeps it loaded, and runs it on a pyramid."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import shown

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from runtime.native.core import Core, Output
    from runtime.native.library import Library
    from runtime.pyramid.config import MergeConfig

_loaded: dict[Path, Library] = {}


def load(device: int = 0, engine: Path | None = None, path: Path | None = None) -> Library:
    """The native library for a GPU: named by DIFFSEG_LIBRARY, in the package, in the cache, or built into the cache.

    Args:
        device: number of the GPU; if no library is found, one is built for its architecture.
        engine: an engine file; its folder is searched where DIFFSEG_LIBRARY is "beside".
        path: load this library, without a search and without a driver.

    Raises:
        DiffSegError: if there is no driver or GPU, if there is neither library nor compiler, or if the library is not
            one of this version.
    """
    from runtime.gpu import probe
    from runtime.native import build
    from runtime.native.library import Library

    if path is None:
        architecture = probe.driver_architecture(device)
        path = build.find_library(engine, architecture)
        if path is None:
            path = build.build_for_gpu(architecture, probe.driver_cuda())
        if path not in _loaded:
            _loaded[path] = Library(path)
        build.check_beside(path, _loaded[path].built, engine, architecture)
    elif path not in _loaded:
        _loaded[path] = Library(path)
    return _loaded[path]


def device_number(device: str) -> int:
    """N of "cuda:N", 0 of "cuda". Raises ValueError for anything else."""
    name, colon, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if name != "cuda" or (colon and not number.isdecimal()):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', found {shown(device)}; choose one of them")
    return int(number or 0)


def segment(
    pyramid: Sequence[Any],
    config: MergeConfig,
    size: Sequence[int],
    grids: Sequence[Sequence[int]] | None = None,
    layers: Sequence[int] | None = None,
    device: str = "cuda",
    library: Library | None = None,
    engine: Path | None = None,
) -> NDArray[Any]:
    """`runtime.merge.segment_attention` on a GPU: labels int32 [H, W], or [B, H, W] for maps with a batch dimension.

    Arrays on the host are uploaded. Arrays on the GPU are read in place (`runtime.gpu.arrays`). Only labels are
    downloaded. `engine`: as for `load`.

    Raises:
        ValueError: if an argument is wrong or maps are no probabilities.
        DiffSegError: if there is no driver, GPU, library or compiler, or the GPU fails.
    """
    return run(pyramid, config, size, grids, layers, device, library, engine).labels


def run(
    pyramid: Sequence[Any],
    config: MergeConfig,
    size: Sequence[int],
    grids: Sequence[Sequence[int]] | None = None,
    layers: Sequence[int] | None = None,
    device: str = "cuda",
    library: Library | None = None,
    engine: Path | None = None,
    *,
    proposals: bool = False,
    details: bool = False,
) -> Output:
    """Run as `segment` does and give all results. `proposals`: with the proposals; `details`: also with the attention.

    Maps without a batch dimension give an output without one. Raises as `segment` does.
    """
    from runtime.pyramid.checks import as_size

    height, width = as_size(size)
    call = prepare(pyramid, config, grids, layers, device, library, engine)
    found = call.core(
        *(call.maps, call.batch or 1, (height, width)),
        proposals=proposals,
        details=details,
        thresholds=config.thresholds,
        stream=call.stream,
    )
    return found if call.batch else found.first()


class Prepared(NamedTuple):
    """What a call of the core needs. `batch`: number of frames; None for maps without a batch dimension."""

    core: Core
    maps: list[Any]
    batch: int | None
    stream: int


def prepare(
    pyramid: Sequence[Any],
    config: MergeConfig,
    grids: Sequence[Sequence[int]] | None = None,
    layers: Sequence[int] | None = None,
    device: str = "cuda",
    library: Library | None = None,
    engine: Path | None = None,
) -> Prepared:
    """Check the arguments of `segment`, and wait for what writes the maps. Raises as `segment` does."""
    import numpy as np

    from runtime.gpu.arrays import device_array
    from runtime.pyramid.anchors import anchor_queries
    from runtime.pyramid.checks import check_pyramid
    from runtime.pyramid.weights import resolution_ratios

    number = device_number(device)
    if config.solver != "merge":
        raise ValueError(f"solver: expected 'merge' on device {device!r}, found {config.solver!r}; use device='cpu'")
    levels = list(pyramid) if not isinstance(pyramid, np.ndarray) else pyramid
    there = [device_array(level, f"pyramid[{index}]") for index, level in enumerate(levels)]
    if any(there) and not all(there):
        raise ValueError("pyramid: expected all levels on the GPU or all on the host, found both; move them together")
    if any(there):
        strangers = [level.device for level in there if level and level.device not in (None, number)]
        if strangers:
            raise ValueError(f"pyramid: expected maps on {device!r}, found them on 'cuda:{strangers[0]}'; pass that")
        types = {level.dtype for level in there if level}
        if len(types) > 1:
            raise ValueError(f"pyramid: expected one type for all levels, found {', '.join(sorted(types))}")
        dtype = types.pop()
        # Arrays without memory of their own, so that the same function checks the shapes as on the host.
        stand_ins = [np.broadcast_to(np.float32(0), level.shape) for level in there if level]
        checked, shapes = check_pyramid(stand_ins, grids)
        maps: list[Any] = list(there)
    else:
        checked, shapes = check_pyramid(levels, grids)
        dtype = "float16" if all(level.dtype == np.float16 for level in checked) else "float32"
        maps = [level.astype(dtype, copy=False) for level in checked]
    ratios = resolution_ratios(config.weights, shapes, layers)
    anchor_queries(shapes[0], config.grid)
    library = library or load(number, engine)
    batch = None if checked[0].ndim == 2 else len(checked[0])
    core = _core(library, config, tuple(ratios), tuple(shapes), dtype, batch or 1, number)
    # On the stream that writes the maps; if there are several, after the others have finished.
    stream, *others = dict.fromkeys(level.stream for level in there if level) or (0,)
    for other in others:
        core.wait(other)
    return Prepared(core, maps, batch, stream)


class _Kept(threading.local):
    """The core of a thread's last call, used again for the same shape: making a core costs more than running it."""

    key: Any = None
    core: Core | None = None


_kept = _Kept()


def _core(library: Library, config: MergeConfig, ratios: Any, shapes: Any, dtype: str, batch: int, device: int) -> Core:
    from runtime.native.core import Core

    # Thresholds may change from frame to frame: a call has its own.
    key = (library.path, config.grid, len(config.thresholds), ratios, shapes, dtype, batch, device)
    if _kept.core is None or _kept.key != key:
        release()  # frees the memory of the last core before the next one allocates
        _kept.core = Core(library, config, ratios, shapes, dtype=dtype, batch=batch, device=device)
        _kept.key = key
    return _kept.core


def release() -> None:
    """Free the GPU memory that this thread keeps between calls."""
    _kept.key = _kept.core = None

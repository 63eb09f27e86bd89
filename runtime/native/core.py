"""The native merge core from Python: a handle of the library, and its device memory."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_float, c_size_t, c_void_p
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.native.library import INPUT_TYPES, LABEL_TYPES, MAX_ITERATIONS, STAGES, Config, Frames, Library, Memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.pyramid.config import MergeConfig


@dataclass(frozen=True, slots=True)
class Output:
    """The results of one call.

    Attributes:
        labels: int32 [B, H, W], indices of proposals.
        segments: int32 [B], the number of proposals.
        proposals: float32 [B, P, n], rows past the number are 0; None unless asked for.
        attention: aggregated attention float32 [B, n, n]; None unless asked for.
        attention_blocks: sums of its rows in equal blocks of pixels, float32 [B, n, blocks]; None unless asked for.
        proposal_blocks: the same of the proposals, float32 [B, P, blocks]; None unless asked for.
    """

    labels: NDArray[np.int32]
    segments: NDArray[np.int32]
    proposals: NDArray[np.float32] | None = None
    attention: NDArray[np.float32] | None = None
    attention_blocks: NDArray[np.float32] | None = None
    proposal_blocks: NDArray[np.float32] | None = None

    def first(self) -> Output:
        """The first frame's results, without the batch dimension; segments stays int32 [1]."""
        rest = (self.proposals, self.attention, self.attention_blocks, self.proposal_blocks)
        return Output(self.labels[0], self.segments[:1], *(None if maps is None else maps[0] for maps in rest))


class Core:
    """The merge core for one shape of pyramid and one configuration. Safe to use from one thread.

    Args:
        library: as `runtime.native.load` gives it.
        config: the grid, the number of iterations, and the thresholds of a call that names none.
        ratios: the share of every level.
        shapes: (h, w) of every level, finest first.
        dtype: of the maps: "float32", "float16" or "bfloat16".
        batch: most frames per call.
        device: number of the GPU.

    Raises:
        ValueError: if the library rejects the configuration.
        DiffSegError: if the device fails or has too little memory.
    """

    def __init__(
        self,
        library: Library,
        config: MergeConfig,
        ratios: Sequence[float],
        shapes: Sequence[tuple[int, int]],
        *,
        dtype: str = "float32",
        batch: int = 1,
        device: int = 0,
    ) -> None:
        self.library, self.device, self.shapes, self.grid = library, device, list(shapes), config.grid
        self.n = shapes[0][0] * shapes[0][1]
        self.thresholds = config.thresholds
        native = native_config(config, ratios, shapes, dtype=dtype, batch=batch, device=device)
        size, handle = c_size_t(), c_void_p()
        library.call("workspace_size", byref(native), byref(size))
        self.workspace_size = size.value
        library.call("create", byref(native), None, 0, byref(handle))
        self._handle: c_void_p | None = handle
        self._memory: dict[str, Memory] = {}

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.library.c.diffseg_destroy(self._handle)
            self._handle = None

    def __call__(
        self,
        maps: Sequence[Any] | None,
        batch: int,
        size: tuple[int, int],
        *,
        proposals: bool = False,
        details: bool = False,
        blocks: tuple[int, int] | None = None,
        thresholds: Sequence[float] | None = None,
        stream: int = 0,
    ) -> Output:
        """Segment a batch of pyramids, [batch, n, n] per level: NumPy arrays or `DeviceArray`s.

        `maps` None: the last call's aggregated attention once more, with other thresholds; then `blocks` gives the sums
        of the proposals alone.

        `proposals`: with the proposals; `details`: also with the aggregated attention; `blocks`: with the sums of both
        in so many blocks of pixels down and across. `thresholds`: in place of the core's, as many. `stream`: the CUDA
        stream. Raises ValueError when maps are not probabilities or blocks do not divide a map, and DiffSegError when
        the device fails.
        """
        wanted: tuple[str, ...] = ("proposals", "attention") if details else ("proposals",) if proposals else ()
        if blocks is not None:
            wanted += ("proposal_blocks",) if maps is None else ("proposal_blocks", "attention_blocks")
        frames, kind = self._frames(maps, batch, size, wanted, stream, blocks)
        if thresholds is not None:
            frames.thresholds[: len(self.thresholds)] = thresholds
        self.library.call("run", self._handle, byref(frames), stream)
        self.library.call("check", self._handle, stream, None)
        shapes = {"labels": ((batch, *size), kind), "segments": ((batch,), "int32")}
        shapes |= {name: (self._shape(name, batch, blocks), "float32") for name in wanted}
        found = {}
        for name, (shape, dtype) in shapes.items():
            found[name] = np.empty(shape, dtype)
            self._memory[name].download(found[name], stream)
        found["labels"] = found["labels"].astype(np.int32)
        return Output(**found)

    def part_means(self, part: NDArray[Any], count: int, stream: int = 0) -> NDArray[np.float32]:
        """Means of the last call's aggregated attention over parts of its queries: float32 [B, count, n].

        Args:
            part: int [B, n], the part of every query, 0 … count−1, for the first B frames of the last call. A part
                without queries has a mean of 0.
            count: of parts, at most the number of anchors.
            stream: the CUDA stream of the last call.

        Raises ValueError for other numbers, or when no frame was segmented before.
        """
        part = np.ascontiguousarray(part, np.int32)
        if part.ndim != 2 or part.shape[1] != self.n:
            raise ValueError(f"part: expected [B, {self.n}], found {list(part.shape)}; give every query its part")
        means = np.empty((len(part), count, self.n), np.float32)
        given, made = self._buffer("part", part.nbytes), self._buffer("means", means.nbytes)
        given.upload(part, stream)
        self.library.call("part_means", self._handle, len(part), given.pointer, count, made.pointer, stream)
        self.library.call("check", self._handle, stream, None)
        made.download(means, stream)
        return means

    def wait(self, stream: int) -> None:
        """Wait for all work queued on a stream. Raises as a call does."""
        self.library.call("check", self._handle, stream, None)

    def profile(
        self, maps: Sequence[Any], batch: int, size: tuple[int, int], repeat: int = 1
    ) -> list[dict[str, float]]:
        """Milliseconds on the device of every stage, for each of `repeat` runs. The maps are uploaded once."""
        frames, _ = self._frames(maps, batch, size, (), 0, None)
        runs = []
        for _ in range(repeat):
            times = (c_float * len(STAGES))()
            self.library.call("profile", self._handle, byref(frames), None, times)
            runs.append(dict(zip(STAGES, map(float, times), strict=True)))
        return runs

    def _frames(
        self,
        maps: Sequence[Any] | None,
        batch: int,
        size: tuple[int, int],
        wanted: Sequence[str],
        stream: int,
        blocks: tuple[int, int] | None,
    ) -> tuple[Frames, str]:
        kind = "uint8" if self.grid <= 16 else "uint16"
        frames = Frames(batch=batch, label_type=LABEL_TYPES[kind], height=size[0], width=size[1], again=maps is None)
        frames.thresholds[: len(self.thresholds)] = self.thresholds
        frames.blocks[:] = blocks or (0, 0)
        for index, level in enumerate(maps or ()):
            if isinstance(level, np.ndarray):
                level = np.ascontiguousarray(level)
                memory = self._buffer(f"maps {index}", level.nbytes)
                memory.upload(level, stream)
                frames.maps[index] = memory.pointer
            else:
                frames.maps[index] = level.pointer
        frames.labels = self._buffer("labels", batch * size[0] * size[1] * np.dtype(kind).itemsize).pointer
        frames.segments = self._buffer("segments", batch * 4).pointer
        for name in wanted:
            setattr(frames, name, self._buffer(name, prod(self._shape(name, batch, blocks)) * 4).pointer)
        return frames, kind

    def _shape(self, name: str, batch: int, blocks: tuple[int, int] | None) -> tuple[int, int, int]:
        rows = self.n if name.startswith("attention") else self.grid**2
        return batch, rows, prod(blocks) if blocks and name.endswith("blocks") else self.n

    def _buffer(self, name: str, size: int) -> Memory:
        """Device memory under a name, kept from call to call and replaced when it is too small."""
        memory = self._memory.get(name)
        if memory is None or memory.size < size:
            memory = self._memory[name] = Memory(self.library, self.device, size)
        return memory


def native_config(
    config: MergeConfig,
    ratios: Sequence[float],
    shapes: Sequence[tuple[int, int]],
    *,
    dtype: str = "float32",
    batch: int = 1,
    device: int = 0,
) -> Config:
    """The `diffseg_config` of a merge. Raises ValueError when there are more levels or thresholds than it holds."""
    native = Config(
        device=device,
        max_batch=batch,
        levels=len(shapes),
        input_type=INPUT_TYPES[dtype],
        anchors=config.grid,
        iterations=len(config.thresholds),
    )
    for name, values, most in (
        ("levels", shapes, len(native.grids)),
        ("thresholds", config.thresholds, MAX_ITERATIONS),
    ):
        if len(values) > most:
            raise ValueError(f"{name}: the merge core on a GPU takes {most} at most, found {len(values)}; use the CPU")
    for index, (shape, ratio) in enumerate(zip(shapes, ratios, strict=True)):
        native.grids[index][:] = shape
        native.weights[index] = ratio
    return native

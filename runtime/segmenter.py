"""Frames in, labels out: the engine, the merge core and the way back to the frame's own size."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from runtime.engine.base import rebuild_command
from runtime.engine.registry import open_engine
from runtime.errors import DiffSegError
from runtime.frames.resize import resize_frame
from runtime.merge.aggregate import aggregate_attention
from runtime.merge.proposals import merge_attention, propose
from runtime.merge.suppress import renumber, suppress
from runtime.pyramid.config import MergeConfig
from runtime.pyramid.weights import check_weights, resolution_ratios
from runtime.refine.refinement import Refinement, split_refine
from runtime.result import Merged, Result

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.engine.base import Engine
    from runtime.engine.spec import EngineSpec
    from runtime.hierarchy import Hierarchy
    from runtime.native.library import Library
    from runtime.pyramid.weights import Weights
    from runtime.track.tracker import TrackerConfig


MOST_ITERATIONS = 100  # far beyond where the merge stands still


class Segmenter:
    """DiffSeg on frames. Safe to use from one thread; `clone()` shares the weights with another."""

    def __init__(
        self,
        engine: Engine,
        config: MergeConfig | None = None,
        *,
        refinement: Refinement | None = None,
        auto: bool = False,
    ) -> None:
        """Take an open engine. `config` None: the defaults the engine was exported with.

        `refinement`: of the labels at the frame's own size. `auto`: thresholds are chosen for every frame, around
        those of the config (`runtime.merge.thresholds`).
        Raises DiffSegError when the grid of anchors or the weights do not fit the engine's attention.
        """
        spec = engine.spec
        self.engine = engine
        self.refinement = refinement or Refinement()
        self.auto = auto
        self.config = config or MergeConfig(
            thresholds=spec.thresholds,
            grid=default_grid(engine),
            weights=check_weights(spec.weights),
        )
        self._grids = [(level.height, level.width) for level in spec.levels]
        self._layers = [level.layers for level in spec.levels]
        try:
            resolution_ratios(self.config.weights, self._grids, self._layers)
        except ValueError as error:
            raise DiffSegError(str(error)) from None
        finest = spec.levels[0]
        side = min(finest.height, finest.width)
        if self.config.grid > side:
            raise DiffSegError(
                f"grid {self.config.grid} does not fit: this engine's finest attention is {finest.height}x"
                f"{finest.width}; expected a grid from 2 to {side}"
            )
        if spec.head == "labels":
            _check_baked(spec, self.config)
        if auto:
            self.require_maps("thresholds 'auto'")
        self._library = _native_core(engine, self.config)

    @classmethod
    def open(
        cls,
        engine: str | Path | None = None,
        device: str = "auto",
        *,
        backend: str | None = None,
        thresholds: float | tuple[float, ...] | Literal["auto"] | None = None,
        iterations: int | None = None,
        grid: int | None = None,
        refine: str = "none",
        min_area: float = 0,
        options: Mapping[str, Any] | None = None,
        **merge: Any,
    ) -> Segmenter:
        """Open an engine file (None: the embedded default) on a device: auto, cpu, cuda or cuda:N.

        `options`: of the backend, such as {"threads": 2, "precision": "fp32"}; see `runtime.engine.open_engine`.
        `thresholds`: one KL threshold for every iteration or one each, or "auto" to choose them for every frame;
        `iterations`: how many; `grid`: anchors per axis; `merge`: the other fields of MergeConfig. What is left out
        comes from the engine's sidecar. `refine`: "kmeans" (see MergeConfig), "snap", which moves borders to edges of
        the frame, or both with a comma; `min_area`: regions smaller than this share of the frame, or from 1 this
        number of pixels, go to their neighbours (`runtime.refine`).
        Raises DiffSegError when the engine cannot be opened or an option is out of range.
        """
        opened = open_engine(engine, device, backend, **(options or {}))
        if iterations is not None and (not isinstance(iterations, int) or not 1 <= iterations <= MOST_ITERATIONS):
            raise DiffSegError(f"iterations: expected 1 to {MOST_ITERATIONS}, found {iterations!r}")
        taus = opened.spec.thresholds
        auto = isinstance(thresholds, str) and thresholds == "auto"
        if isinstance(thresholds, Real) and not isinstance(thresholds, bool):
            taus = (float(thresholds),) * (iterations or len(taus))
        elif thresholds is not None and not auto:
            if isinstance(thresholds, (str, bool)) or not isinstance(thresholds, Iterable):
                raise DiffSegError(f"thresholds: expected a number, one per iteration, or 'auto', found {thresholds!r}")
            taus = tuple(thresholds)
            if iterations not in (None, len(taus)):
                raise DiffSegError(
                    f"expected one threshold, or one for each of {iterations} iterations, found {len(taus)}"
                )
        elif iterations is not None:
            # More iterations than exported thresholds: the last one goes on.
            taus = (taus + taus[-1:] * iterations)[:iterations]
        grid = default_grid(opened) if grid is None else grid
        try:
            given = {name: value for name, value in merge.items() if value is not None}
            clustering, snap = split_refine(refine)
            given = {"weights": opened.spec.weights, "refine": clustering} | given
            config = MergeConfig(thresholds=taus, grid=grid, **given)
            refinement = Refinement(snap, min_area)
        except (TypeError, ValueError) as error:
            raise DiffSegError(str(error)) from None
        return cls(opened, config, refinement=refinement, auto=auto)

    def __call__(
        self,
        frame: NDArray[np.uint8],
        *,
        details: bool = False,
        proposals: bool = False,
        seeds: NDArray[np.float32] | None = None,
    ) -> Result:
        """Segment one frame, uint8 [H, W, 3] BGR of any size.

        `details` adds proposals and aggregated attention; `proposals` the proposals alone, which costs nothing (None
        from an engine with the head labels). `seeds`: see `merge`.
        Raises DiffSegError when the frame has another shape or type.
        """
        if details:
            self.require_maps("details")
        times = [time.perf_counter()]
        resized = self.resize(frame)
        times.append(time.perf_counter())
        maps = self.network(resized, proposals=proposals, details=details)
        times.append(time.perf_counter())
        merged = self.merge(maps, details=details, seeds=seeds)
        times[-1] -= merged.milliseconds / 1e3
        times.append(time.perf_counter())
        labels, count, kept = self.fit(merged, frame, proposals=details or proposals)
        times.append(time.perf_counter())
        stages = np.diff(times) * 1e3
        milliseconds = {
            name: round(float(ms), 3) for name, ms in zip(("resize", "network", "merge", "labels"), stages, strict=True)
        }
        milliseconds["total"] = round((times[-1] - times[0]) * 1e3, 3)
        return Result(labels, count, milliseconds, kept, merged.attention, thresholds=merged.thresholds)

    # The four stages of a call, one after the other. Each may run in a thread of its own, on a frame of its own.

    def resize(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The frame at the engine's size. Raises DiffSegError when it is not uint8 [H, W, 3]."""
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            found = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise DiffSegError(f"expected a frame uint8 [H, W, 3] BGR, found {found}; read it with cv2.imread")
        if 0 in frame.shape:
            raise DiffSegError(f"expected a frame of at least one pixel, found {list(frame.shape)}")
        return resize_frame(frame, self.engine.spec.height, self.engine.spec.width)

    def network(
        self, resized: NDArray[np.uint8], *, proposals: bool = False, details: bool = False
    ) -> list[NDArray[Any]] | Merged:
        """The attention pyramid of a resized frame, [n, n] each; with the head labels its labels [H, W] alone.

        On a GPU the maps are merged there at once, and `proposals` and `details` say what comes to the host besides
        labels.
        """
        batch = self._batch(resized)
        if self.engine.spec.head == "labels":
            return [self.engine.infer(batch, self.config.thresholds)[0][0]]
        if self._library is not None:
            return self._merge_on_device(batch, proposals, details)
        return [maps[0] for maps in self.engine.infer(batch)]

    def prefetch(self, resized: NDArray[np.uint8]) -> None:
        """Begin to bring a resized frame to where the network runs, from any thread, while it works on others.

        `network` is to follow with this very array, unchanged. Makes no difference but time.
        """
        self.engine.prefetch(self._batch(resized))

    def _batch(self, resized: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """One frame as the engine takes it, not copied; a fixed batch is filled with it."""
        count = self.engine.spec.batch or 1
        return np.ascontiguousarray(resized)[None] if count == 1 else np.repeat(resized[None], count, axis=0)

    def _merge_on_device(self, batch: NDArray[np.uint8], proposals: bool, details: bool) -> Merged:
        """Network and merge on the GPU where the maps lie: only what is asked for crosses to the host."""
        from runtime import native

        spec = self.engine.spec
        maps = [replace(level, shape=level.shape[1:]) for level in self.engine.infer_on_device(batch)]
        start = time.perf_counter()
        size = (spec.height, spec.width)
        where: tuple[Any, ...] = (self._grids, self._layers, self.engine.device, self._library)
        config, chosen = self.config, None
        try:
            if self.auto:
                attention = native.run(maps, config, size, *where, details=True).attention
                config, chosen = self._choose([attention], "proportional", self._grids[:1], self._layers[:1])
            found = native.run(maps, config, size, *where, proposals=proposals, details=details)
        except ValueError as error:  # as for instance a map with a NaN
            raise DiffSegError(str(error)) from None
        kept = None if found.proposals is None else found.proposals[: int(found.segments[0])]
        return Merged(found.labels, kept, found.attention, (time.perf_counter() - start) * 1e3, chosen)

    def _choose(
        self, pyramid: list[Any], weights: Weights, grids: list[tuple[int, int]], layers: list[int]
    ) -> tuple[MergeConfig, tuple[float, ...]]:
        """The config with thresholds for this frame, and these."""
        from runtime.merge.thresholds import stable_thresholds

        found = stable_thresholds(pyramid, replace(self.config, weights=weights), grids=grids, layers=layers)
        return replace(self.config, thresholds=found.thresholds), found.thresholds

    def merge(
        self,
        maps: list[NDArray[Any]] | Merged,
        *,
        details: bool = False,
        seeds: NDArray[np.float32] | None = None,
    ) -> Merged:
        """Merge a pyramid; with the head labels, or on a GPU, that is done already.

        `details` keeps the aggregated attention. `seeds` float32 [S, h, w], the proposals of the frame before, are a
        warm start: they are the first anchors, and the grid is half as fine per axis. About half of the work is saved;
        on a GPU there is nothing worth saving, and all anchors are taken.
        """
        if isinstance(maps, Merged):
            return maps
        spec = self.engine.spec
        if spec.head == "labels":
            return Merged(maps[0].astype(np.int32, copy=False), None, None)
        attention = None
        shapes: dict[str, Any] = {"grids": self._grids, "layers": self._layers}
        config, chosen = self.config, None
        if self.auto:
            config, chosen = self._choose(maps, config.weights, self._grids, self._layers)
        if details:
            attention = aggregate_attention(maps, weights=config.weights, **shapes)
            proposals = merge_attention(attention, config, self._grids[0])
        elif seeds is not None:
            config = replace(config, grid=max(2, config.grid // 2))
            proposals = propose(maps, config, **shapes, seeds=seeds.reshape(len(seeds), -1))
        else:
            # The same proposals, without ever forming the aggregated attention as a whole.
            proposals = propose(maps, config, **shapes)
        raw = suppress(proposals, self._grids[0], (spec.height, spec.width))
        return Merged(raw, proposals, attention, thresholds=chosen)

    def fit(
        self, merged: Merged, frame: NDArray[np.uint8], *, proposals: bool = False
    ) -> tuple[NDArray[np.int32], int, NDArray[np.float32] | None]:
        """Refined labels int32 at the frame's size, their number, and on request their proposals."""
        fitted: Any = cv2.resize(merged.raw, frame.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        fitted = self.refinement(fitted, frame, self._grids[0])
        labels, count = renumber(fitted)
        if not proposals or merged.proposals is None:
            return labels, count, None
        present = np.flatnonzero(np.bincount(fitted.ravel()))
        return labels, count, merged.proposals[present].reshape(count, *self._grids[0])

    def hierarchy(self, frame: NDArray[np.uint8], thresholds: Iterable[float] | None = None) -> Hierarchy:
        """Nested segmentations of one frame, uint8 [H, W, 3] BGR, from one pass of the network.

        `thresholds`: KL threshold of every level, in any order; None: nine, from a quarter of the engine's own to four
        times of it. The finest level is what a call with its threshold gives, refinement included; the others are
        unions of its segments (`runtime.hierarchy.group_proposals`).
        Raises DiffSegError when the frame or a threshold is none, or the engine has the head labels.
        """
        from runtime.hierarchy import build_hierarchy
        from runtime.merge.grouping import STEPS, check_sweep

        self.require_maps("hierarchy")
        spec = self.engine.spec
        try:
            sweep = check_sweep([spec.thresholds[0] * step for step in STEPS] if thresholds is None else thresholds)
        except ValueError as error:
            raise DiffSegError(str(error)) from None
        config = replace(self.config, thresholds=(sweep[0],) * len(self.config.thresholds))
        return build_hierarchy(Segmenter(self.engine, config, refinement=self.refinement)(frame, proposals=True), sweep)

    def stream(
        self,
        frames: Iterable[NDArray[np.uint8]],
        *,
        temporal: bool | TrackerConfig = True,
        every: int = 1,
        warm_start: bool = False,
    ) -> Iterator[Result]:
        """Segment frame after frame of one clip, camera or stream, one result for each, in order.

        Args:
            frames: uint8 [H, W, 3] BGR; where their size changes, a new scene begins.
            temporal: labels are identities that stay with their objects (`runtime.temporal`); False: every frame by
                itself, exactly as a call gives it.
            every: the engine sees every so many frames; between them labels are carried along the optical flow.
            warm_start: with `temporal`, the merge begins from the proposals of the frame before: half of its work for
                somewhat coarser segments; see `merge`.

        Raises:
            DiffSegError: where `every` is below 1, a frame is none, the extra `video` is missing, or an engine without
                maps is to start warm.
        """
        from runtime.stream.each import stream

        if warm_start:
            self.require_maps("warm start")
        return stream(self, frames, temporal, every, warm_start)

    def require_maps(self, what: str) -> None:
        """Raise DiffSegError where `what`, which is made from maps, is asked of an engine that gives none."""
        spec = self.engine.spec
        if spec.head == "labels":
            raise DiffSegError(
                f"{what}: an engine with the head labels gives no maps; expected the head attention, found labels; "
                f"'python -m export {spec.source} --head attention --output engines/NAME' makes one"
            )

    def clone(self) -> Segmenter:
        """A Segmenter for another thread, on the same weights."""
        return Segmenter(self.engine.clone(), self.config, refinement=self.refinement, auto=self.auto)


def _native_core(engine: Engine, config: MergeConfig) -> Library | None:
    """The merge core for maps that lie on a GPU; None where they do not, or the head has merged them already.

    Raises DiffSegError where a GPU was asked for by name, and there is no core for it or it cannot do what is wanted.
    """
    if not engine.on_device or engine.spec.head == "labels":
        return None
    try:
        if config.refine != "none":
            raise DiffSegError(
                f"refine: expected none on device {engine.device}, for the merge core there cannot refine, found "
                f"{config.refine}; use --device cpu, or leave it out"
            )
        from runtime import native

        return native.load(native.device_number(engine.device), engine.path)
    except DiffSegError as error:
        if engine.asked != "auto":
            raise
        logging.getLogger("diffseg").warning("merging on the CPU: %s", error)
        return None


def default_grid(engine: Engine) -> int:
    """The exported default, or less where the finest attention is smaller than it."""
    finest = engine.spec.levels[0]
    return min(engine.spec.grid, finest.height, finest.width)


def _check_baked(spec: EngineSpec, config: MergeConfig) -> None:
    """Raise DiffSegError where the config asks for what the graph of a labels engine is not."""
    baked = {
        "grid": (spec.grid, config.grid, f"--grid {config.grid}"),
        "weights": (spec.weights, config.weights, f"--weights {_text(config.weights)}"),
        "iterations": (
            len(spec.thresholds),
            len(config.thresholds),
            f"--threshold {_text(config.thresholds)}",
        ),
    }
    for name, (expected, found, option) in baked.items():
        if expected != found:
            raise DiffSegError(
                f"{name}: expected {_text(expected)}, which is part of this engine's graph, found {_text(found)}; "
                f"{rebuild_command(spec, option)} changes it, and the head attention leaves it open"
            )
    if config.refine != "none":
        raise DiffSegError(
            f"refine: expected none, for an engine with the head labels cannot refine, found {config.refine}; "
            f"'python -m export {spec.source} --head attention --output engines/NAME' makes one that can"
        )


def _text(value: Any) -> str:
    return ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)

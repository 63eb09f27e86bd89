"""The evaluated methods: DiffSeg in all its settings, K-means on its attention, and classical segmentation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.engine.heads import HEADS
from runtime.errors import DiffSegError
from runtime.frames.resize import resize_frame
from runtime.merge.aggregate import aggregate_attention
from runtime.merge.segment import segment_attention
from runtime.merge.solvers.ncut import normalized_cut
from runtime.merge.suppress import suppress
from runtime.pyramid.config import MergeConfig
from runtime.pyramid.mirror import looks_right, mirror_output
from runtime.refine.refinement import Refinement, split_refine
from tools.evaluate import classical
from tools.evaluate.datasets import DataSet, resize_bilinear
from tools.evaluate.divergence import merge_jensen_shannon
from tools.evaluate.metrics import join_background
from tools.evaluate.variants import Variant, parse_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from runtime.engine.base import Engine
    from runtime.engine.spec import EngineSpec

ATTENTION_METHODS = ("diffseg", "kmeans-c", "kmeans-s")
CONSTANT_CLUSTERS = 6  # K-Means-C of the paper


class Evaluator:
    """Runs variants on frames. The network runs once per frame and engine, for all variants together."""

    def __init__(self, device: str = "cpu", backend: str | None = None) -> None:
        self._device, self._backend = device, backend
        self._engines: dict[tuple[str, bool], Engine] = {}
        self._pyramids: dict[tuple[str, bool], list[NDArray[Any]]] = {}
        self._frame: NDArray[np.uint8] | None = None

    def engine(self, path: str, flip: bool = False) -> Engine:
        """The opened engine. `flip`: see `open_engine`. Raises DiffSegError when it cannot be opened."""
        if (path, flip) not in self._engines:
            from runtime.engine.registry import open_engine

            # One thread, so that figures do not depend on the number of cores; plans have no such option.
            on_cpu = self._device == "cpu" and path.lower().endswith(".onnx")
            threads = 1 if on_cpu else None
            self._engines[path, flip] = open_engine(Path(path), self._device, self._backend, flip=flip, threads=threads)
        return self._engines[path, flip]

    def labels(
        self, variant: Variant, data: DataSet, frame: NDArray[np.uint8], truths: Sequence[NDArray[np.int32]]
    ) -> NDArray[np.int32]:
        """The segment index of every pixel, int32 of the truth's size.

        DiffSeg's indices are not renumbered: the gaps of proposals that won no pixel matter to the protocol's ties.
        If the protocol has a crop, the frame is resized by plain bilinear interpolation and the proposals are
        interpolated to the size of the crop. Otherwise frame and labels are resized as `runtime.Segmenter` does. If it
        has a background, the segments that belong to it are one, before any refinement.
        `frame`: uint8 [H, W, 3] BGR. `truths`: int32 [h, w] per annotator.
        """
        size = truths[0].shape
        cropped = bool(data.protocol.crop)
        shown = resize_bilinear(frame, *size) if cropped else frame
        alike = None
        if variant.method in classical.METHODS:
            labels = classical.METHODS[variant.method](shown)
        else:
            labels, alike = self._segment(variant, frame, truths, cropped)
        if data.protocol.background:
            labels = join_background(labels, truths[0], len(data.protocol.classes))
        if variant.engine is not None and (variant.refine or variant.min_area or variant.pieces):
            finest = self.engine(variant.engine).spec.levels[0]
            refinement = Refinement(
                split_refine(variant.refine or "none")[1], variant.min_area or 0, variant.pieces or "keep"
            )
            labels = refinement(labels, shown, (finest.height, finest.width))
            if pieces := refinement.split(labels, alike=alike):
                labels = pieces[0]
        return labels

    def _segment(
        self, variant: Variant, frame: NDArray[np.uint8], truths: Sequence[NDArray[np.int32]], cropped: bool
    ) -> tuple[NDArray[np.int32], NDArray[np.intp] | None]:
        """The labels that an engine's output gives, int32 of the truth's size, and `runtime.result.Merged.alike`."""
        assert variant.engine is not None
        alike = None
        size = truths[0].shape
        spec = self.engine(variant.engine).spec
        target = size if cropped else (spec.height, spec.width)
        if HEADS[spec.head].route == "labels":
            labels = self._infer(variant.engine, frame, cropped, variant.thresholds)[0].astype(np.int32)
        elif HEADS[spec.head].route == "features":
            labels = _cut(variant, spec, self._pyramid(variant.engine, frame, cropped)[0], target)
        elif variant.method == "diffseg":
            pyramid = self._pyramid(variant.engine, frame, cropped, bool(variant.flip))
            labels, alike = _merge(variant, spec, pyramid, target)
        else:
            maps = _aggregate(variant, spec, self._pyramid(variant.engine, frame, cropped))
            centres = cluster(maps, CONSTANT_CLUSTERS if variant.method == "kmeans-c" else regions(truths))
            labels = suppress(centres, _shapes(spec)["grids"][0], target)
        if labels.shape != size:
            labels = np.asarray(cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.int32)
        return labels, alike

    def _pyramid(self, path: str, frame: NDArray[np.uint8], plain: bool, flip: bool = False) -> list[NDArray[Any]]:
        if self._frame is not frame:
            self._frame, self._pyramids = frame, {}
        if (path, flip) not in self._pyramids:
            found = self._infer(path, frame, plain, flip=flip)
            levels = self.engine(path, flip).spec.levels
            self._pyramids[path, flip] = found[: len(levels)]  # words' maps may follow
        return self._pyramids[path, flip]

    def _infer(
        self,
        path: str,
        frame: NDArray[np.uint8],
        plain: bool,
        thresholds: Sequence[float] | None = None,
        flip: bool = False,
    ) -> list[NDArray[Any]]:
        engine = self.engine(path, flip)
        spec = engine.spec
        resized = (resize_bilinear if plain else resize_frame)(frame, spec.height, spec.width)
        batch = np.repeat(resized[None], spec.batch or 1, axis=0)
        return [maps[0] for maps in engine.infer(batch, thresholds)]


def _shapes(spec: EngineSpec) -> dict[str, Any]:
    """The arguments of the merge core that describe the maps."""
    return {
        "grids": [(level.height, level.width) for level in spec.levels],
        "layers": [level.layers for level in spec.levels],
    }


def _aggregate(variant: Variant, spec: EngineSpec, pyramid: list[NDArray[Any]]) -> NDArray[np.float32]:
    weights = parse_weights(variant.weights or "proportional", spec)
    return aggregate_attention(pyramid, weights=weights, **_shapes(spec))


def _merge(
    variant: Variant, spec: EngineSpec, pyramid: list[NDArray[Any]], size: tuple[int, int]
) -> tuple[NDArray[np.int32], NDArray[np.intp] | None]:
    """DiffSeg's labels int32 [H, W], not renumbered, and `runtime.result.Merged.alike`."""
    assert variant.thresholds is not None and variant.grid is not None
    shapes = _shapes(spec)
    shape = shapes["grids"][0]
    if variant.flip and looks_right(pyramid[0], shape):  # as `runtime.routes.host.HostRoute` turns it
        turned = mirror_output(pyramid, shapes["grids"])
        labels, alike = _merge(replace(variant, flip=None), spec, turned, size)
        return np.ascontiguousarray(labels[:, ::-1]), None if alike is None else alike[:, ::-1]
    if variant.similarity == "js":
        maps = _aggregate(variant, spec, pyramid)
        proposals = merge_jensen_shannon(maps, shape, variant.grid, variant.thresholds)
        return suppress(proposals, shape, size), None
    weights = parse_weights(variant.weights or "proportional", spec)
    solver = split_refine(variant.refine or "none", variant.solver)[0]
    config = MergeConfig(variant.thresholds, variant.grid, weights, solver, variant.tau, variant.alpha)
    if variant.auto:
        from runtime.merge.parts import find_parts

        found = find_parts(pyramid, config, **shapes)
        return suppress(found.scores, shape, size), found.alike
    return segment_attention(pyramid, config, size=size, **shapes), None


def _cut(variant: Variant, spec: EngineSpec, features: NDArray[Any], size: tuple[int, int]) -> NDArray[np.int32]:
    """The labels int32 [H, W] of the normalised cut of an engine's features [n, C]."""
    numbers = {"tau": variant.tau, "alpha": variant.alpha}
    given = {name: value for name, value in numbers.items() if value is not None}
    try:
        return normalized_cut(features, _shapes(spec)["grids"][0], size=size, **given)
    except ValueError as error:  # as for a NaN
        raise DiffSegError(str(error)) from None


def regions(truths: Sequence[NDArray[np.int32]]) -> int:
    """Number of classes or regions in the ground truth, the median over annotators: the k of K-Means-S."""
    counts = [len(np.unique(truth[truth >= 0])) for truth in truths]
    return max(1, round(float(np.median(counts))))


def cluster(maps: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Means of the K-means clusters of the maps [n, n], with the same seed on every call: float32 [k, n].

    The paper's baseline: the attention maps are the features, and the cluster means replace the proposals.
    """
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-6)
    centres = cv2.kmeans(maps, min(k, len(maps)), np.empty(0, np.int32), stop, 3, cv2.KMEANS_PP_CENTERS)[2]
    return np.asarray(centres, np.float32)

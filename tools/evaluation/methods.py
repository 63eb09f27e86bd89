"""Methods that are evaluated: DiffSeg in all its settings, K-means on its attention, and classical segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.errors import DiffSegError
from runtime.merge import MergeConfig, aggregate_attention, segment_attention, suppress
from runtime.pyramid import Weights, check_weights, resolution_ratios
from runtime.segmenter import resize_frame
from tools.evaluation import classical
from tools.evaluation.datasets import DataSet, resize_bilinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from runtime.engine import Engine
    from runtime.sidecar import EngineSpec

ATTENTION_METHODS = ("diffseg", "kmeans-c", "kmeans-s")
METHODS = (*ATTENTION_METHODS, *classical.METHODS)
CONSTANT_CLUSTERS = 6  # K-Means-C of the paper


@dataclass(frozen=True, slots=True)
class Variant:
    """One method in one setting: a row of the table. None: does not apply.

    `thresholds`, one per iteration, `grid` and `similarity` ("kl" or "js") are of DiffSeg's merge; `weights` of the
    aggregation, which K-means shares.
    """

    method: str
    engine: str | None = None
    weights: str | None = None
    thresholds: tuple[float, ...] | None = None
    grid: int | None = None
    similarity: str | None = None


class Evaluator:
    """Runs variants on frames; the network runs once per frame and engine, whatever the number of variants."""

    def __init__(self, device: str = "cpu", backend: str | None = None) -> None:
        self._device, self._backend = device, backend
        self._engines: dict[str, Engine] = {}
        self._pyramids: dict[str, list[NDArray[Any]]] = {}
        self._frame: NDArray[np.uint8] | None = None

    def engine(self, path: str) -> Engine:
        """The opened engine. Raises DiffSegError when it cannot be opened."""
        if path not in self._engines:
            from runtime.engine import open_engine

            # One thread, so that figures do not depend on the machine's cores; plans have no such option.
            on_cpu = self._device == "cpu" and path.lower().endswith(".onnx")
            engine = open_engine(Path(path), self._device, self._backend, threads=1 if on_cpu else None)
            self._engines[path] = engine
        return self._engines[path]

    def labels(
        self, variant: Variant, data: DataSet, frame: NDArray[np.uint8], truths: Sequence[NDArray[np.int32]]
    ) -> NDArray[np.int32]:
        """Segment index of every pixel, int32 of the truth's size. DiffSeg's are raw: proposals that won no pixel
        leave gaps, on which the protocol's tie-breaking depends.

        With a protocol's crop the network gets the frame by plain bilinear interpolation and the proposals are
        interpolated to the crop's size; otherwise frame and labels are resized as `runtime.Segmenter` does.
        """
        size = truths[0].shape
        if variant.method in classical.METHODS:
            return classical.METHODS[variant.method](resize_bilinear(frame, *size) if data.protocol.crop else frame)
        assert variant.engine is not None
        spec = self.engine(variant.engine).spec
        network = (spec.height, spec.width)
        if spec.head == "labels":
            network_labels = self._infer(variant.engine, frame, bool(data.protocol.crop), variant.thresholds)[0]
            return _fit(network_labels.astype(np.int32), size)
        pyramid = self._pyramid(variant.engine, frame, plain=bool(data.protocol.crop))
        shapes: dict[str, Any] = {
            "grids": [(level.height, level.width) for level in spec.levels],
            "layers": [level.layers for level in spec.levels],
        }
        target = size if data.protocol.crop else network
        weights = parse_weights(variant.weights or "proportional", spec)
        if variant.method == "diffseg" and variant.similarity == "kl":
            config = MergeConfig(variant.thresholds or (), variant.grid or 0, weights)
            labels = segment_attention(pyramid, config, size=target, **shapes)
        else:
            maps = aggregate_attention(pyramid, weights=weights, **shapes)
            if variant.method == "diffseg":
                from tools.evaluation.divergence import merge_jensen_shannon

                proposals = merge_jensen_shannon(maps, shapes["grids"][0], variant.grid or 0, variant.thresholds or ())
            else:
                k = CONSTANT_CLUSTERS if variant.method == "kmeans-c" else regions(truths)
                proposals = cluster(maps, k)
            labels = suppress(proposals, shapes["grids"][0], target)
        return _fit(labels, size)

    def _pyramid(self, path: str, frame: NDArray[np.uint8], plain: bool) -> list[NDArray[Any]]:
        if self._frame is not frame:
            self._frame, self._pyramids = frame, {}
        if path not in self._pyramids:
            self._pyramids[path] = self._infer(path, frame, plain)
        return self._pyramids[path]

    def _infer(
        self, path: str, frame: NDArray[np.uint8], plain: bool, thresholds: Sequence[float] | None = None
    ) -> list[NDArray[Any]]:
        engine = self.engine(path)
        spec = engine.spec
        resized = (resize_bilinear if plain else resize_frame)(frame, spec.height, spec.width)
        batch = np.repeat(resized[None], spec.batch or 1, axis=0)
        return [maps[0] for maps in engine.infer(batch, thresholds)]


def _fit(labels: NDArray[np.int32], size: tuple[int, int]) -> NDArray[np.int32]:
    if labels.shape == size:
        return labels
    return np.asarray(cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.int32)


def regions(truths: Sequence[NDArray[np.int32]]) -> int:
    """Number of classes or regions in the ground truth, the median over annotators: k of K-Means-S."""
    counts = [len(np.unique(truth[truth >= 0])) for truth in truths]
    return max(1, round(float(np.median(counts))))


def cluster(maps: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Means of the K-means clusters of the maps [n, n], seeded alike on every call: float32 [k, n].

    The paper's baseline: the attention maps are the features, the cluster means take the proposals' place.
    """
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-6)
    centres = cv2.kmeans(maps, min(k, len(maps)), np.empty(0, np.int32), stop, 3, cv2.KMEANS_PP_CENTERS)[2]
    return np.asarray(centres, np.float32)


def parse_weights(text: str, spec: EngineSpec) -> Weights:
    """Weights of the aggregation as they are typed: proportional, per-tensor, 64-only, or numbers with commas.

    Raises DiffSegError when the engine has no such resolution or another number of them.
    """
    sides = [max(level.height, level.width) for level in spec.levels]
    try:
        if text.endswith("-only"):
            side = int(text.removesuffix("-only"))
            if side not in sides:
                raise ValueError(f"expected one of {', '.join(f'{side}-only' for side in sides)}")
            return tuple(float(one == side) for one in sides)
        named = text in ("proportional", "per-tensor")
        weights = check_weights(text if named else tuple(float(part) for part in text.split(",")))
        resolution_ratios(weights, [(level.height, level.width) for level in spec.levels], [1] * len(sides))
    except ValueError as error:
        raise DiffSegError(
            f"--weights {text}: {error}; expected proportional, per-tensor, {sides[0]}-only or one number per "
            f"resolution ({', '.join(map(str, sides))})"
        ) from None
    return weights


def settle(
    method: str,
    engine: str,
    spec: EngineSpec,
    data: DataSet,
    weights: str | None,
    threshold: tuple[float, ...] | None,
    iterations: int | None,
    grid: int | None,
    similarity: str,
) -> Variant:
    """A variant with every default filled in from the engine and the data set's protocol.

    Raises DiffSegError when a setting does not fit the engine.
    """
    own = spec.weights if isinstance(spec.weights, str) else ",".join(f"{value:g}" for value in spec.weights)
    chosen = weights or own
    parsed = parse_weights(chosen, spec)
    if spec.head == "labels":
        _check_labels_head(method, engine, spec, chosen == own, iterations, grid, similarity)
    if method != "diffseg":
        return Variant(method, engine, chosen)
    thresholds = threshold or _default_thresholds(spec, data, similarity)
    if iterations is not None:
        if threshold is not None and len(threshold) not in (1, iterations):
            raise DiffSegError(
                f"expected one threshold, or one for each of {iterations} iterations, found {len(threshold)}"
            )
        thresholds = (thresholds + thresholds[-1:] * iterations)[:iterations]
    elif len(thresholds) == 1:
        thresholds = thresholds * len(spec.thresholds)
    finest = spec.levels[0]
    most = min(finest.height, finest.width)
    if grid is not None and not 2 <= grid <= most:
        raise DiffSegError(f"--grid {grid}: expected 2 to {most}, the shorter side of the finest attention")
    try:
        config = MergeConfig(thresholds, min(spec.grid, most) if grid is None else grid, parsed)
    except ValueError as error:
        raise DiffSegError(str(error)) from None
    return Variant(method, engine, chosen, config.thresholds, config.grid, similarity)


def _default_thresholds(spec: EngineSpec, data: DataSet, similarity: str) -> tuple[float, ...]:
    """The engine's own thresholds, or those of the data set's protocol, or what stands for them in another
    similarity."""
    thresholds = spec.thresholds
    if data.protocol.replace_threshold is not None:
        usual, other = data.protocol.replace_threshold
        thresholds = tuple(other if value == usual else value for value in thresholds)
    if similarity == "js":
        from tools.evaluation.divergence import KL_PER_JS

        thresholds = tuple(value / KL_PER_JS for value in thresholds)
    return thresholds


def _check_labels_head(
    method: str, engine: str, spec: EngineSpec, own_weights: bool, iterations: int | None, grid: int | None, alike: str
) -> None:
    """Raise DiffSegError where something is asked for that is not in the graph of an engine with the head labels."""
    same = own_weights and iterations in (None, len(spec.thresholds)) and grid in (None, spec.grid) and alike == "kl"
    if method != "diffseg" or not same:
        raise DiffSegError(
            f"{engine}: has the head labels, whose grid, weights and iterations are part of the graph; expected the "
            "head attention for other ones, for K-means and for --similarity js; export it with --head attention"
        )

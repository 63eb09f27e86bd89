"""The merge core against the authors' labels, and against DiffSeg written out plainly below."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.merge.aggregate import aggregate_attention
from runtime.merge.proposals import merge_attention
from runtime.merge.segment import segment_attention
from runtime.merge.suppress import renumber, suppress
from runtime.pyramid.config import MergeConfig

DATA = Path(__file__).parents[2] / "data"


# DiffSeg as the paper words it, in float64 and without a shortcut.


def plain_upsample(image, height, width):
    """Bilinear, half-pixel centres, clamped edges."""
    h, w = image.shape
    y = np.clip((np.arange(height) + 0.5) * h / height - 0.5, 0, h - 1)
    x = np.clip((np.arange(width) + 0.5) * w / width - 0.5, 0, w - 1)
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    y1, x1 = np.minimum(y0 + 1, h - 1), np.minimum(x0 + 1, w - 1)
    fy, fx = (y - y0)[:, None], x - x0
    top = image[y0][:, x0] * (1 - fx) + image[y0][:, x1] * fx
    bottom = image[y1][:, x0] * (1 - fx) + image[y1][:, x1] * fx
    return top * (1 - fy) + bottom * fy


def plain_aggregate(pyramid, grids, ratios):
    h, w = grids[0]
    result = np.zeros((h, w, h * w))
    for level, (hr, wr), ratio in zip(pyramid, grids, ratios, strict=True):
        for y in range(h):
            for x in range(w):
                row = level[(y * hr // h) * wr + x * wr // w].astype(np.float64).reshape(hr, wr)
                row = plain_upsample(row, h, w).ravel()
                result[y, x] += ratio * row / row.sum()
    return result.reshape(h * w, h * w)


def plain_divergence(a, b):
    return 0.5 * np.sum((a - b) * (np.log(np.maximum(a, 1e-12)) - np.log(np.maximum(b, 1e-12))), axis=-1)


def plain_anchors(h, w, grid):
    def axis(side):
        step = (side - 1) // (grid - 1)
        start = (side - 1 - step * (grid - 1)) // 2
        return [start + step * i for i in range(grid)]

    return [y * w + x for y in axis(h) for x in axis(w)]


def plain_merge(maps, anchors, thresholds):
    """Proposals, and the smallest distance of any divergence from its threshold: decisions within it may flip."""
    margin = np.inf
    proposals = []
    for anchor in anchors:
        divergence = plain_divergence(maps[anchor], maps)
        margin = min(margin, np.abs(divergence - thresholds[0]).min())
        proposals.append(maps[divergence < thresholds[0]].mean(axis=0))
    for threshold in thresholds[1:]:
        claimed, merged = set(), []
        for i, proposal in enumerate(proposals):
            if i in claimed:
                continue
            divergence = plain_divergence(proposal, np.array(proposals))
            margin = min(margin, np.abs(divergence - threshold).min())
            members = np.flatnonzero(divergence < threshold)
            merged.append(np.mean([proposals[j] for j in members], axis=0))
            claimed.update(members)
        proposals = merged
    return np.array(proposals), margin


def plain_suppress(proposals, grid_shape, size):
    return np.array([plain_upsample(p.reshape(grid_shape), *size) for p in proposals]).argmax(axis=0)


def proportional(grids):
    sides = np.array([np.sqrt(h * w) for h, w in grids])
    return sides / sides.sum()


def random_pyramid(rng, grids, sharpness=3.0, dtype=np.float32):
    """Maps like attention: queries look at the places of like colour, in a picture of a few flat regions."""
    h, w = grids[0]
    seeds = rng.random((5, 2)) * (h, w)
    y, x = np.mgrid[:h, :w] + 0.5
    region = np.argmin([(y - sy) ** 2 + (x - sx) ** 2 for sy, sx in seeds], axis=0)
    picture = rng.normal(size=(5, 4))[region]
    pyramid = []
    for hr, wr in grids:
        small = cv2.resize(picture, (wr, hr), interpolation=cv2.INTER_LINEAR).reshape(hr * wr, 4)
        small = small + 0.1 * rng.normal(size=small.shape)
        distance = ((small[:, None] - small) ** 2).sum(-1)
        maps = np.exp(-sharpness * distance)
        pyramid.append((maps / maps.sum(1, keepdims=True)).astype(dtype))
    return pyramid


def reference(index):
    with np.load(DATA / f"reference_{index}.npz") as data:
        vector = dict(data)
    pyramid = []
    for name in ("q64", "q32", "q16", "q8"):
        total = 0.0
        for q in vector[name].astype(np.float64):
            half = 0.5 * (q * q).sum(1)
            maps = np.exp(q @ q.T - half[:, None] - half)  # at most e⁰: no shift needed
            total = total + maps / maps.sum(1, keepdims=True)
        pyramid.append((total / len(vector[name])).astype(np.float32))
    return pyramid, vector


@pytest.fixture(scope="module", params=[0, 1, 2])
def vector(request):
    return reference(request.param)


def test_reference_rows(vector):
    pyramid, expected = vector
    rows = aggregate_attention(pyramid)[[0, 1000, 4095]]
    np.testing.assert_allclose(rows, expected["aggregate_rows"], rtol=1e-4, atol=1e-9)


def test_reference_labels(vector):
    pyramid, expected = vector
    config = MergeConfig(tuple(expected["thresholds"]), int(expected["grid"]))
    labels = segment_attention(pyramid, config, size=expected["labels"].shape)
    assert labels.dtype == np.int32
    assert np.mean(labels != expected["labels"]) <= 0.001


GRIDS = [
    [(16, 16), (8, 8), (4, 4), (2, 2)],
    [(16, 24), (8, 12), (4, 6)],
    [(20, 12)],
    [(15, 22), (7, 9), (4, 4), (4, 3)],  # nothing divides anything
    [(13, 13), (13, 5)],  # one axis alone is coarser
    [(24, 24), (8, 8), (6, 6)],
]


@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_aggregate_equals_the_plain_one(grids):
    pyramid = random_pyramid(np.random.default_rng(0), grids)
    found = aggregate_attention(pyramid, grids=grids)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain_aggregate(pyramid, grids, proportional(grids)), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_labels_equal_the_plain_ones(grids, seed):
    rng = np.random.default_rng(seed)
    pyramid = random_pyramid(rng, grids, sharpness=rng.uniform(0.5, 6))
    h, w = grids[0]
    grid = int(rng.integers(2, min(h, w) + 1))
    maps = plain_aggregate(pyramid, grids, proportional(grids))
    spread = plain_divergence(maps[::7, None], maps[None, ::5])
    checked = 0
    for quantile in (0.05, 0.25, 0.5, 0.9):
        thresholds = tuple(float(np.quantile(spread, quantile)) * factor for factor in (1, 0.9, 1.1))
        expected, margin = plain_merge(maps, plain_anchors(h, w, grid), thresholds)
        if margin < 2e-6:
            continue  # float32 may decide otherwise
        checked += 1
        config = MergeConfig(thresholds, grid)
        found = merge_attention(aggregate_attention(pyramid, grids=grids), config, (h, w))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)
        labels = segment_attention(pyramid, config, size=(37, 53), grids=grids)
        assert np.mean(labels != plain_suppress(expected, (h, w), (37, 53))) <= 0.001
    assert checked >= 1


@pytest.mark.parametrize("quantile", [0.02, 0.3, 0.7, 1.0])
def test_screening_leaves_no_member_out(quantile):
    """Blocks, tiles and thresholds of every size against the dense product, with zeros among the maps."""
    from runtime.merge.aggregate import Aggregation
    from runtime.merge.iterations import screen
    from runtime.pyramid.anchors import anchor_queries

    rng = np.random.default_rng(5)
    for shape in ((40, 40), (24, 32), (17, 19), (34, 18)):
        maps = rng.gamma(0.2, size=(shape[0] * shape[1],) * 2).astype(np.float32)
        maps[rng.random(maps.shape) < 0.3] = 0
        maps /= maps.sum(1, keepdims=True)
        anchors = anchor_queries(shape, 5)
        divergence = np.array([plain_divergence(maps[a].astype(float), maps[::11]) for a in anchors])
        threshold = float(np.quantile(divergence, quantile))
        pooled = Aggregation([maps], [shape], [1.0], total=len(maps)).pooled
        candidates = screen(pooled, len(maps), pooled[anchors], threshold)[:, ::11]
        assert candidates[divergence < threshold].all()


def test_screening_leaves_out_most_maps_that_are_too_far():
    from runtime.merge.aggregate import Aggregation
    from runtime.merge.iterations import screen
    from runtime.pyramid.anchors import anchor_queries

    maps = aggregate_attention(random_pyramid(np.random.default_rng(0), [(s, s) for s in (32, 16, 8, 4)]))
    anchors = anchor_queries((32, 32), 6)
    divergence = np.array([plain_divergence(maps[anchor], maps) for anchor in anchors])
    threshold = float(np.quantile(divergence, 0.2))
    pooled = Aggregation([maps], [(32, 32)], [1.0], total=len(maps)).pooled
    assert screen(pooled, len(maps), pooled[anchors], threshold).mean() < 0.25


def test_input_of_320_pixels():
    """A side of 40: its anchors reach from 4 to 34."""
    from runtime.pyramid.anchors import anchor_queries

    queries = anchor_queries((40, 40), 16)
    assert queries[0] == 4 * 40 + 4
    assert queries[-1] == 34 * 40 + 34
    pyramid = random_pyramid(np.random.default_rng(1), [(s, s) for s in (40, 20, 10, 5)])
    assert segment_attention(pyramid, MergeConfig((0.3,) * 3), size=(320, 320)).shape == (320, 320)


@pytest.mark.parametrize("grid", range(2, 9))
def test_every_grid(grid):
    grids = [(8, 11), (4, 5)]
    pyramid = random_pyramid(np.random.default_rng(grid), grids)
    maps = plain_aggregate(pyramid, grids, proportional(grids))
    expected, margin = plain_merge(maps, plain_anchors(8, 11, grid), (0.31, 0.27))
    assert margin > 1e-6
    found = merge_attention(maps, MergeConfig((0.31, 0.27), grid), (8, 11))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)


def test_tiny_threshold_keeps_every_anchor():
    """An anchor is its own member, whatever its products round to."""
    pyramid = random_pyramid(np.random.default_rng(2), [(16, 16), (8, 8)])
    aggregated = aggregate_attention(pyramid)
    proposals = merge_attention(aggregated, MergeConfig((1e-30, 1e-30), 16), (16, 16))
    np.testing.assert_allclose(proposals, aggregated, rtol=1e-5)


def test_huge_threshold_merges_everything():
    pyramid = random_pyramid(np.random.default_rng(2), [(16, 16), (8, 8)])
    proposals = merge_attention(aggregate_attention(pyramid), MergeConfig((1e6, 1e6), 5), (16, 16))
    assert len(proposals) == 1
    np.testing.assert_allclose(proposals[0], aggregate_attention(pyramid).mean(0), rtol=1e-4)


def test_one_hot_maps_stay_apart():
    """D of two one-hot maps is −log(1e-12): the zeros are clamped, not NaN."""
    maps = np.eye(64, dtype=np.float32)
    for threshold, count in ((27.5, 16), (27.7, 1)):
        proposals = merge_attention(aggregate_attention([maps]), MergeConfig((threshold,) * 2, 4), (8, 8))
        assert len(proposals) == count
        assert np.isfinite(proposals).all()


def test_uniform_maps_give_one_segment():
    labels = segment_attention([np.full((64, 64), 1 / 64), np.full((16, 16), 1 / 16)], MergeConfig(grid=8), size=(9, 7))
    assert (labels == 0).all()


def test_zeros_and_denormals():
    rng = np.random.default_rng(3)
    maps = rng.random((64, 64)) ** 40
    maps[:, ::3] = 0
    maps[:, 1] = 1e-40
    found = segment_attention([maps.astype(np.float32)], MergeConfig((5.0, 5.0), 8), size=(16, 16))
    expected, _ = plain_merge(maps / maps.sum(1, keepdims=True), plain_anchors(8, 8, 8), (5.0, 5.0))
    np.testing.assert_array_equal(found, plain_suppress(expected, (8, 8), (16, 16)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_precisions(dtype):
    grids = [(16, 16), (8, 8)]
    exact = random_pyramid(np.random.default_rng(4), grids, dtype=np.float64)
    found = aggregate_attention([level.astype(dtype) for level in exact])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, aggregate_attention(exact), rtol=5e-3, atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_batch_equals_single_frames():
    pyramids = [random_pyramid(np.random.default_rng(seed), [(16, 16), (8, 8), (4, 4)]) for seed in range(3)]
    batch = [np.stack(level) for level in zip(*pyramids, strict=True)]
    config = MergeConfig((0.2, 0.2), 8)
    labels = segment_attention(batch, config, size=(32, 24))
    assert labels.shape == (3, 32, 24)
    aggregated = aggregate_attention(batch)
    for index, pyramid in enumerate(pyramids):
        np.testing.assert_array_equal(labels[index], segment_attention(pyramid, config, size=(32, 24)))
        np.testing.assert_array_equal(aggregated[index], aggregate_attention(pyramid))


def test_input_is_left_alone_and_may_be_strided():
    pyramid = random_pyramid(np.random.default_rng(0), [(16, 16), (8, 8)])
    before = [level.copy() for level in pyramid]
    expected = segment_attention(pyramid, MergeConfig((0.2,) * 2, 8), size=(32, 32))
    for level, copy in zip(pyramid, before, strict=True):
        np.testing.assert_array_equal(level, copy)
    strided = [np.asfortranarray(level) for level in pyramid]
    np.testing.assert_array_equal(segment_attention(strided, MergeConfig((0.2,) * 2, 8), size=(32, 32)), expected)


def test_weights_of_one_resolution():
    pyramid = random_pyramid(np.random.default_rng(0), [(16, 16), (8, 8), (4, 4)])
    np.testing.assert_array_equal(aggregate_attention(pyramid, weights=(1, 0, 0)), aggregate_attention(pyramid[:1]))
    grids = [(16, 16), (8, 8), (4, 4)]
    np.testing.assert_allclose(
        aggregate_attention(pyramid, weights=[0, 2, 0]), plain_aggregate(pyramid, grids, (0, 1, 0)), rtol=1e-4
    )


def test_weights_per_tensor():
    grids = [(16, 16), (8, 8), (4, 4), (2, 2)]
    pyramid = random_pyramid(np.random.default_rng(0), grids)
    ratios = np.array([5 * 16, 5 * 8, 5 * 4, 1 * 2]) / (5 * 16 + 5 * 8 + 5 * 4 + 1 * 2)
    found = aggregate_attention(pyramid, weights="per-tensor", layers=(5, 5, 5, 1))
    np.testing.assert_allclose(found, plain_aggregate(pyramid, grids, ratios), rtol=1e-4, atol=1e-9)
    config = MergeConfig((0.2,) * 2, 8, weights="per-tensor")
    by_hand = MergeConfig((0.2,) * 2, 8, weights=tuple(ratios))
    np.testing.assert_array_equal(
        segment_attention(pyramid, config, size=(32, 32), layers=[5, 5, 5, 1]),
        segment_attention(pyramid, by_hand, size=(32, 32)),
    )


def test_kmeans_gives_cluster_means():
    pyramid = random_pyramid(np.random.default_rng(0), [(16, 16), (8, 8)])
    maps = aggregate_attention(pyramid)
    plain = merge_attention(maps, MergeConfig((0.3,) * 3, 8), (16, 16))
    centres = merge_attention(maps, MergeConfig((0.3,) * 3, 8, solver="kmeans"), (16, 16))
    assert centres.shape == plain.shape
    assert len(centres) > 1

    def inertia(points):
        return ((maps[:, None] - points) ** 2).sum(-1).min(1).sum()

    assert inertia(centres) <= inertia(plain)
    expected = plain.astype(np.float64)
    for _ in range(10):
        nearest = ((maps[:, None] - expected) ** 2).sum(-1).argmin(1)
        expected = np.array(
            [maps[nearest == k].mean(0) if (nearest == k).any() else expected[k] for k in range(len(expected))]
        )
    np.testing.assert_allclose(centres, expected, rtol=1e-3, atol=1e-6)


def test_kmeans_keeps_a_centre_without_maps():
    from runtime.merge.solvers.kmeans import kmeans

    maps = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]
    centres = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 9, 9]], np.float32)
    np.testing.assert_array_equal(kmeans(maps, centres), centres)


def test_suppress_equals_the_plain_one():
    rng = np.random.default_rng(0)
    for shape, size in (((8, 8), (64, 64)), ((5, 9), (41, 23)), ((16, 16), (7, 5)), ((4, 4), (1, 1))):
        proposals = rng.random((12, shape[0] * shape[1])).astype(np.float32)
        found = suppress(proposals, shape, size)
        assert found.dtype == np.int32
        assert np.mean(found != plain_suppress(proposals, shape, size)) <= 0.001


def test_tie_goes_to_the_first_proposal():
    first, second = np.random.default_rng(0).random((2, 36)).astype(np.float32)
    labels = suppress(np.stack([first, second, first, second]), (6, 6), (40, 40))
    assert set(np.unique(labels)) == {0, 1}


def test_renumber():
    labels, count = renumber(np.array([[7, 2], [2, 9]], np.uint8))
    np.testing.assert_array_equal(labels, [[1, 0], [0, 2]])
    assert (labels.dtype, count) == (np.int32, 3)
    assert renumber(np.zeros((0, 4), np.int64))[1] == 0


def test_config_is_a_value():
    config = MergeConfig([1, 0.5], np.int64(8), weights=[2, 1])
    assert config == MergeConfig((1.0, 0.5), 8, (2.0, 1.0))
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.grid = 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": ()}, "at least one, found ()"),
        ({"thresholds": (1.0, -1.0)}, "found (1.0, -1.0)"),
        ({"thresholds": (float("nan"),)}, "finite number above 0"),
        ({"thresholds": 1.1}, "found 1.1"),
        ({"grid": 1}, "at least 2, found 1"),
        ({"grid": 2.5}, "whole number of anchors"),
        ({"grid": True}, "found True"),
        ({"weights": "equal"}, "found 'equal'; choose one"),
        ({"weights": (0.0, 0.0)}, "not all 0"),
        ({"weights": (1.0, -1.0)}, "not negative"),
        ({"weights": ()}, "found ()"),
        ({"weights": None}, "found None"),
        ({"solver": "crf"}, "solver: expected 'merge' or 'kmeans', found 'crf'; choose one"),
    ],
)
def test_config_errors(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MergeConfig(**arguments)


def changed(value):
    maps = np.full((64, 64), 1 / 64, np.float32)
    maps[5] = value
    return maps


U = {n: np.full((n, n), 1 / n, np.float32) for n in (4, 12, 16, 64)}


@pytest.mark.parametrize(
    ("pyramid", "arguments", "message"),
    [
        ([], {}, "at least one resolution, found none"),
        (U[64], {}, "found one array (64, 64); put it into a list"),
        ([U[64][:10]], {}, "pyramid[0]: expected maps [n, n] or [B, n, n], found shape (10, 64)"),
        ([U[64], np.zeros(4)], {}, "pyramid[1]: expected maps [n, n]"),
        ([U[64].astype(int)], {}, "found int64; convert it"),
        ([U[64][None], U[16]], {}, "pyramid[1]: expected the batch of the finest resolution (1,), found ()"),
        ([U[12]], {}, "found n = 12, which is no square; pass grids="),
        ([U[64], U[16]], {"grids": [(8, 8)]}, "grids: expected 2 pairs (h, w), one per resolution, found 1"),
        ([U[64]], {"grids": [(8, 9)]}, "grids[0]: expected h·w = 64, the size of the maps, found 8x9"),
        ([U[16], U[64]], {}, "finest first, each once, found 4x4, 8x8; sort them"),
        ([U[16], U[16]], {}, "finest first, each once, found 4x4, 4x4"),
        ([U[64], U[16]], {"grids": [(16, 4), (2, 8)]}, "finest first"),
        ([changed(np.nan)], {}, "pyramid[0]: expected rows of probabilities"),
        ([changed(np.inf)], {}, "found a NaN or an infinity; check the engine's precision"),
        ([changed(0)], {}, "found a row of zeros"),
        ([changed(1e-38)], {}, "found a row of zeros, or nearly"),
        ([changed(np.linspace(-0.1, 1, 64))], {}, "found a negative value"),
        ([U[64], changed(np.nan)[:16, :16]], {}, "pyramid[1]: expected rows of probabilities"),
        ([U[64]], {"config": MergeConfig(grid=9)}, "grid: expected 2 to 8 anchors per axis"),
        ([U[64]], {"config": MergeConfig(grid=8, weights=(1, 1))}, "weights: expected 1 numbers"),
        ([U[64]], {"config": MergeConfig(grid=8, weights="per-tensor")}, "pass layers="),
        ([U[64]], {"config": MergeConfig(grid=8, weights="per-tensor"), "layers": (0,)}, "found (0,)"),
        ([U[64]], {"size": (0, 4)}, "size: expected (H, W), whole numbers from 1, found (0, 4)"),
        ([U[64]], {"size": (4, 4, 3)}, "found (4, 4, 3)"),
        ([U[64]], {"device": "gpu"}, "device: expected 'cpu', 'cuda' or 'cuda:N', found 'gpu'; choose one"),
    ],
)
def test_segment_errors(pyramid, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        segment_attention(pyramid, **{"config": MergeConfig(grid=4), "size": (16, 16), **arguments})


def test_errors_of_the_steps():
    config = MergeConfig(grid=4)
    with pytest.raises(ValueError, match=re.escape("aggregated: expected [64, 64] for the grid 8x8, found [16, 16]")):
        merge_attention(U[16], config, (8, 8))
    with pytest.raises(ValueError, match=r"aggregated: expected rows of probabilities.* a NaN or an infinity"):
        merge_attention(changed(np.nan), config, (8, 8))
    with pytest.raises(ValueError, match="proposals: expected"):
        suppress(np.zeros((0, 64)), (8, 8), (16, 16))
    with pytest.raises(ValueError, match="labels: expected integers, found float64"):
        renumber(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="labels: expected numbers from 0, found -1"):
        renumber(np.array([-1, 0]))


def test_needs_neither_scipy_nor_torch():
    code = (
        "import sys, numpy as np; from runtime.merge import *; "
        "segment_attention([np.full((64, 64), 1 / 64)], MergeConfig(grid=4), size=(8, 8)); "
        "print([m for m in ('scipy', 'torch', 'export') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert done.stdout.strip() == "[]"


def test_blas_is_held_to_one_thread_and_let_go():
    from threadpoolctl import ThreadpoolController

    from runtime.merge.threads import _controller, one_thread

    _controller.cache_clear()  # another test may have loaded another BLAS since

    pools = ThreadpoolController().select(user_api="blas")
    before = [pool["num_threads"] for pool in pools.info()]
    with one_thread(), one_thread():
        assert all(pool["num_threads"] == 1 for pool in pools.info()) and pools.info()
    assert [pool["num_threads"] for pool in pools.info()] == before

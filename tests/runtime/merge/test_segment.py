"""Labels against the authors' and the plain ones."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.merge.aggregate import aggregate_attention
from runtime.merge.proposals import merge_attention
from runtime.merge.segment import segment_attention
from runtime.pyramid.config import MergeConfig
from tests.runtime.merge.plain import (
    GRIDS,
    U,
    changed,
    plain_aggregate,
    plain_anchors,
    plain_divergence,
    plain_merge,
    plain_suppress,
    proportional,
    random_pyramid,
    reference,
)


@pytest.mark.parametrize("index", [0, *(pytest.param(index, marks=pytest.mark.slow) for index in (1, 2))])
def test_reference_labels(index):
    pyramid, expected = reference(index)
    config = MergeConfig(tuple(expected["thresholds"]), int(expected["grid"]))
    labels = segment_attention(pyramid, config, size=expected["labels"].shape)
    assert labels.dtype == np.int32
    assert np.mean(labels != expected["labels"]) <= 0.001


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
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


def test_input_of_320_pixels():
    """A side of 40: its anchors reach from 4 to 34."""
    from runtime.pyramid.anchors import anchor_queries

    queries = anchor_queries((40, 40), 16)
    assert queries[0] == 4 * 40 + 4
    assert queries[-1] == 34 * 40 + 34
    pyramid = random_pyramid(np.random.default_rng(1), [(s, s) for s in (40, 20, 10, 5)])
    assert segment_attention(pyramid, MergeConfig((0.3,) * 3), size=(320, 320)).shape == (320, 320)


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

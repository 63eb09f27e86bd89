"""Aggregated attention against the authors' rows and the plain one."""

import numpy as np
import pytest

from runtime.merge.aggregate import aggregate_attention
from runtime.merge.segment import segment_attention
from runtime.pyramid.config import MergeConfig
from tests.runtime.merge.plain import GRIDS, plain_aggregate, proportional, random_pyramid, reference


@pytest.mark.parametrize("index", [0, *(pytest.param(index, marks=pytest.mark.slow) for index in (1, 2))])
def test_reference_rows(index):
    pyramid, expected = reference(index)
    rows = aggregate_attention(pyramid)[[0, 1000, 4095]]
    np.testing.assert_allclose(rows, expected["aggregate_rows"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_aggregate_equals_the_plain_one(grids):
    pyramid = random_pyramid(np.random.default_rng(0), grids)
    found = aggregate_attention(pyramid, grids=grids)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain_aggregate(pyramid, grids, proportional(grids)), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_precisions(dtype):
    grids = [(16, 16), (8, 8)]
    exact = random_pyramid(np.random.default_rng(4), grids, dtype=np.float64)
    found = aggregate_attention([level.astype(dtype) for level in exact])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, aggregate_attention(exact), rtol=5e-3, atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


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

"""Proposals against the plain ones."""

import re

import numpy as np
import pytest

from runtime.merge.aggregate import aggregate_attention
from runtime.merge.proposals import merge_attention, propose
from runtime.merge.suppress import renumber, suppress
from runtime.pyramid.config import MergeConfig
from tests.runtime.merge.plain import (
    U,
    changed,
    plain_aggregate,
    plain_anchors,
    plain_merge,
    proportional,
    random_pyramid,
)


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


def test_proposals_do_not_depend_on_the_number_of_threads(monkeypatch):
    pyramid = random_pyramid(np.random.default_rng(0), [(32, 32), (16, 16), (8, 8), (4, 4)])
    found = []
    for threads in (1, 2, 3, 4, 9):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        monkeypatch.setattr("runtime.merge.threads.usable_cores", lambda: 16)
        found.append(propose(pyramid, MergeConfig((0.3,) * 3, 16)))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)

"""The iterations of the merge."""

import numpy as np
import pytest

from runtime.merge.aggregate import aggregate_attention
from tests.runtime.merge.plain import plain_divergence, random_pyramid


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


@pytest.mark.parametrize("shape", [(16, 16), (17, 19), (8, 34), (5, 3)])
@pytest.mark.parametrize("side", [8, 16])
def test_a_tile_is_active_where_one_of_its_maps_is_a_candidate(shape, side):
    from runtime.merge.iterations import active_tiles

    h, w = shape
    candidates = np.random.default_rng(0).random((40, h, w)) < 0.01
    found = active_tiles(candidates, side)
    corners = [(y, x) for y in range(0, h, side) for x in range(0, w, side)]
    expected = [[one[y : y + side, x : x + side].any() for y, x in corners] for one in candidates]
    np.testing.assert_array_equal(found, expected)


def test_the_first_come_claim_all_that_are_near():
    """0 is near 1 and 1 near 2: 0 claims 1; 2 is kept, and takes 1 once more."""
    from runtime.merge.iterations import first_come

    near = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]], bool)
    asked = []
    kept = first_come(4, lambda index: asked.append(index) or near[index])
    np.testing.assert_array_equal(kept, near[[0, 2, 3]])
    assert asked == [0, 2, 3]

"""Thresholds chosen without labels, and hierarchies over a sweep of them."""

import numpy as np
import pytest
from skimage import data

from runtime import DiffSegError, Segmenter
from runtime.merge.aggregate import aggregate_attention
from runtime.merge.divergence import divergences
from runtime.merge.grouping import group_proposals, unions
from runtime.merge.likeness import segment_means
from runtime.merge.parts import KL_SHARE, alike_pieces, cut_hierarchy, find_parts
from runtime.merge.segment import segment_attention
from runtime.pyramid.config import MergeConfig
from runtime.stream.continuity import Continuity
from tests.runtime.merge.plain import stripes

pytestmark = pytest.mark.usefixtures("embedded_stays_open")

CAT = data.chelsea()[..., ::-1].copy()


def _quadrants(within=0.05, between=3.0, side=16):
    """Attention over four quadrants: within one D is about within², between two several times `between`."""
    rng = np.random.default_rng(0)
    n = side * side
    y, x = np.divmod(np.arange(n), side)
    part = (y >= side // 2) * 2 + (x >= side // 2)
    logits = between * (part[:, None] == part) + rng.normal(0, within, (n, n))
    maps = np.exp(logits)
    return [(maps / maps.sum(1, keepdims=True)).astype(np.float32)], part.reshape(side, side)


@pytest.mark.parametrize("usual", [0.06, 0.3, 3.0, 5.0, 50.0])
def test_finds_what_is_there_from_a_bad_start(usual):
    pyramid, part = _quadrants(within=0.4)
    found = find_parts(pyramid, MergeConfig((usual, usual / 2), grid=8))
    assert np.array_equal(found.scores.argmax(axis=0).reshape(16, 16), part)
    means = [pyramid[0][part.ravel() == k].mean(axis=0) for k in range(4)]
    np.testing.assert_allclose(found.proposals, means, rtol=1e-4)
    assert found.scores.max() <= 1.001


def test_where_nothing_is_found_there_is_one_segment():
    assert len(find_parts([np.full((256, 256), 1 / 256, np.float32)], MergeConfig((0.4, 0.4), grid=8)).proposals) == 1
    black = np.zeros((64, 96, 3), np.uint8)
    auto, plain = (Segmenter.open(device="cpu", thresholds=value)(black) for value in ("auto", None))
    assert auto.count == plain.count == 1


def _criterion(maps, segments):
    """As `runtime.merge.parts` defines it, token by token; less the mean KL of maps from their segment's mean."""
    n = len(maps)
    both = (maps + maps.T) / 2 / n
    total = 0.0
    for k in np.unique(segments):
        inside = segments == k
        mean = maps[inside].mean(axis=0)
        total += both[inside][:, inside].sum() - both[inside].sum() ** 2
        total -= KL_SHARE * (maps[inside] * np.log(maps[inside] / mean)).sum() / n
    return total


def test_the_cut_is_the_best_of_the_hierarchy():
    """Against every cut of a hierarchy of eight parts."""
    rng = np.random.default_rng(5)
    part = rng.permutation(np.repeat(np.arange(8), 8))
    parent = np.array([0, 0, 0, 1, 1, 2, 2, 2])[part]
    logits = 1.2 * (parent[:, None] == parent) + 0.9 * (part[:, None] == part) + rng.normal(0, 0.4, (64, 64))
    maps = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    means = np.stack([maps[part == k].mean(axis=0) for k in range(8)])
    cuts = {0: {((0,),)}} | {k: {((k,),)} for k in range(8)}  # of each group: its cuts, as tuples of segments
    groups = {k: (k,) for k in range(8)}
    for kept, gone, _ in unions(means, np.full(8, 8)):
        groups[kept] = groups[kept] + groups.pop(gone)
        cuts[kept] = {one + other for one in cuts[kept] for other in cuts[gone]} | {(groups[kept],)}

    def segments(cut):
        return np.array([next(k for k, members in enumerate(cut) if own in members) for own in part])

    assert len(cuts[0]) > 20
    values = {cut: _criterion(maps, segments(cut)) for cut in cuts[0]}
    best = segments(max(values, key=values.__getitem__))
    found = cut_hierarchy((means * 64).astype(np.float32), part)[part]
    assert 1 < found.max() + 1 < 8
    assert np.array_equal(found[:, None] == found, best[:, None] == best)


def test_wrong_thresholds_would_have_failed():
    """The start above is bad: as given, those thresholds find one segment, or many."""
    pyramid, _ = _quadrants(within=0.4)
    counts = [
        len(np.unique(segment_attention(pyramid, MergeConfig((tau, tau / 2), grid=8), size=(16, 16))))
        for tau in (0.06, 5.0)
    ]
    assert counts[0] > 4 and counts[1] < 4


class _Means:
    def __init__(self, maps):
        self._maps = maps * np.float32(len(maps))

    def means(self, part, count):
        return segment_means(self._maps, part)


@pytest.mark.parametrize(("seen_as", "one"), [((0, 1, 0), True), ((0, 1, 2), False)], ids=str)
def test_pieces_are_seen_as_one_if_their_maps_are_alike(seen_as, one):
    """Ground on both sides of a post."""
    shape = (20, 24)
    segments = np.broadcast_to(np.repeat([0, 1, 0], 8), shape).copy()
    segments[0, 12] = 0  # a speck
    alike = alike_pieces(segments, _Means(stripes(shape, seen_as)[0]), 0.3)
    left, post, right = alike[5, ::8]
    assert bool(left == right) == one and post not in (left, right) and alike[0, 12] == left


def test_pieces_are_seen_as_one_by_way_of_others():
    """Each piece looks at itself and its neighbours, so that the outer ones have little in common."""
    near = np.eye(5) + np.eye(5, k=1) + np.eye(5, k=-1) + 0.01
    column = np.arange(20) // 2
    pieces = np.where(column % 2 == 0, column // 2, -1)
    maps = np.where((pieces >= 0) & (pieces >= 0)[:, None], near[pieces[:, None], pieces], 0.01).astype(np.float32)
    maps /= maps.sum(1, keepdims=True)
    segments = np.tile((pieces < 0).astype(np.intp), (1, 1))
    apart = divergences(np.stack([maps[pieces == piece].mean(0) for piece in range(5)]))
    assert apart[0, 1] < apart[0, 4] / 2
    (alike,) = alike_pieces(segments, _Means(maps), float(apart[0, 4] / 1.5))
    assert len(set(alike[pieces >= 0])) == 1
    (alike,) = alike_pieces(segments, _Means(maps), 1e-3)
    assert len(set(alike[pieces >= 0])) == 5


def test_auto_says_which_pieces_are_seen_as_one():
    found = find_parts(stripes((12, 21)), MergeConfig((0.5,), grid=8), grids=[(12, 21)])
    alike = found.alike[6, ::7]
    assert len(found.proposals) == 2 and alike[0] == alike[2] != alike[1]


def test_auto_is_what_the_parts_are():
    auto = Segmenter.open(device="cpu", thresholds="auto", pieces="keep")
    result = auto(CAT, details=True)
    stages = auto.stages
    pyramid = stages.network(stages.gather([stages.resize(CAT)]), 1)[0]
    assert np.array_equal(stages.merge(pyramid).raw, stages.merge(pyramid, details=True).raw)
    found = find_parts(pyramid, auto.config)
    assert 3 < result.count <= len(found.proposals)
    np.testing.assert_array_equal(result.attention, aggregate_attention(pyramid))
    assert np.array_equal(auto.clone()(CAT).labels, result.labels)


def test_auto_is_for_the_merge_alone():
    for options in ({"solver": "ncut"}, {"refine": "kmeans,snap"}):
        with pytest.raises(DiffSegError, match=r"thresholds 'auto': expected the solver merge, found .*; leave out"):
            Segmenter.open(device="cpu", thresholds="auto", **options)


def test_groups_are_average_linkage():
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    maps = np.random.default_rng(2).dirichlet(np.full(30, 0.4), 24) + 1e-4
    maps /= maps.sum(1, keepdims=True)
    logs = np.log(maps)
    divergences = 0.5 * ((maps[:, None] - maps) * (logs[:, None] - logs)).sum(-1)
    tree = linkage(squareform(divergences, checks=False), "average")
    sweep = np.quantile(tree[:, 2], [0.1, 0.4, 0.7, 0.95]) + 1e-6
    for groups, threshold in zip(group_proposals(maps, np.full(24, 7), sweep), sweep, strict=True):
        expected = fcluster(tree, threshold, "distance")
        assert np.array_equal(groups[:, None] == groups, expected[:, None] == expected)


def test_weights_are_areas():
    """A segment of area 2 counts as two of its kind."""
    maps = np.random.default_rng(3).dirichlet(np.full(8, 0.5), 6) + 1e-3
    maps /= maps.sum(1, keepdims=True)
    sweep = np.geomspace(0.05, 10, 12)
    twice = group_proposals(np.concatenate((maps, maps[:1])), np.ones(7), sweep)
    assert np.array_equal(twice[:, :6], group_proposals(maps, [2, 1, 1, 1, 1, 1], sweep))


def test_hierarchy_is_nested_and_runs_the_network_once(monkeypatch):
    segmenter = Segmenter.open(device="cpu", refine="snap")
    calls = []
    infer = segmenter.engine.infer
    monkeypatch.setattr(segmenter.engine, "infer", lambda *args: calls.append(1) or infer(*args))
    hierarchy = segmenter.hierarchy(CAT, (0.8, 0.1, 0.2, 0.4))
    assert len(calls) == 1
    assert hierarchy.thresholds == (0.1, 0.2, 0.4, 0.8) and hierarchy.levels == 4
    assert hierarchy.counts[0] > hierarchy.counts[2] > 1 and list(hierarchy.counts) == sorted(hierarchy.counts)[::-1]
    plain = Segmenter.open(device="cpu", thresholds=0.1, refine="snap", pieces="keep")(CAT)
    assert np.array_equal(hierarchy.labels(0), plain.labels)
    for level in range(3):
        finer, coarser = hierarchy.labels(level), hierarchy.labels(level + 1)
        assert len(np.unique(coarser)) == coarser.max() + 1 == hierarchy.counts[level + 1]
        assert len(np.unique(finer.astype(np.int64) * 1000 + coarser)) == hierarchy.counts[level]
    with pytest.raises(IndexError):
        hierarchy.labels(4)
    with pytest.raises(AttributeError):
        hierarchy.counts = ()
    assert segmenter.hierarchy(CAT).levels == 9


@pytest.mark.parametrize("sweep", [(), (0.0, 1.0), ("a",), 0.3, (float("nan"),)])
def test_bad_sweeps(sweep):
    with pytest.raises(DiffSegError, match="thresholds: expected finite numbers above 0, one per level"):
        Segmenter.open(device="cpu").hierarchy(CAT, sweep)


def test_labels_engines_name_the_export_that_helps():
    engine = Segmenter.open(device="cpu").engine
    object.__setattr__(engine.spec, "head", "labels")
    segmenter = Segmenter(engine)
    for attempt in (
        lambda: segmenter.hierarchy(CAT),
        lambda: Segmenter(engine, auto=True),
        lambda: segmenter.stream([CAT], warm_start=True),
        lambda: Continuity(segmenter.stages, warm_start=True),
    ):
        with pytest.raises(DiffSegError, match=r"gives no maps.*--head attention --output engines/NAME' makes one"):
            attempt()

"""Thresholds chosen without labels, and hierarchies over a sweep of them."""

import numpy as np
import pytest
from skimage import data

from runtime import DiffSegError, Segmenter
from runtime.merge.grouping import group_proposals
from runtime.merge.segment import segment_attention
from runtime.merge.thresholds import stable_thresholds
from runtime.pyramid.config import MergeConfig
from runtime.stream.continuity import Continuity

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


@pytest.mark.parametrize("usual", [0.06, 0.3, 3.0, 5.0])
def test_finds_what_is_there_from_a_bad_start(usual):
    pyramid, part = _quadrants(within=0.4)
    config = stable_thresholds(pyramid, MergeConfig((usual, usual / 2), grid=8))
    first, second = config.thresholds
    assert usual / 4.001 <= first <= usual * 4.001 and second == pytest.approx(first / 2)
    labels = segment_attention(pyramid, config, size=(16, 16))
    assert np.array_equal(labels, part)


def test_where_nothing_is_found_the_usual_thresholds_stay():
    """Either nothing merges or all does: no step of the sweep agrees with another on anything."""
    usual = MergeConfig((0.4, 0.4), grid=8)
    for pyramid in ([np.full((256, 256), 1 / 256, np.float32)], [np.eye(256, dtype=np.float32) * 0.999 + 0.001 / 256]):
        assert stable_thresholds(pyramid, usual) == usual
    black = np.zeros((64, 96, 3), np.uint8)
    auto, plain = (Segmenter.open(device="cpu", thresholds=value)(black) for value in ("auto", None))
    assert auto.count == plain.count == 1


def test_wrong_thresholds_would_have_failed():
    """The start above is bad: as given, those thresholds find one segment, or many."""
    pyramid, _ = _quadrants(within=0.4)
    counts = [
        len(np.unique(segment_attention(pyramid, MergeConfig((tau, tau / 2), grid=8), size=(16, 16))))
        for tau in (0.06, 5.0)
    ]
    assert counts[0] > 4 and counts[1] < 4


def test_auto_equals_its_own_thresholds():
    auto = Segmenter.open(device="cpu", thresholds="auto")
    result = auto(CAT)
    usual = auto.engine.spec.thresholds
    assert len(result.thresholds) == len(usual) and usual[0] / 4.001 <= result.thresholds[0] <= usual[0] * 4.001
    fixed = Segmenter.open(device="cpu", thresholds=result.thresholds)(CAT)
    assert fixed.thresholds is None and np.array_equal(fixed.labels, result.labels)
    assert auto.clone()(CAT).thresholds == result.thresholds
    assert len(Segmenter.open(device="cpu", thresholds="auto", iterations=5)(CAT).thresholds) == 5


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
    plain = Segmenter.open(device="cpu", thresholds=0.1, refine="snap")(CAT)
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

"""A frame that was attended once gives the same segments as the Segmenter, without its network."""

import numpy as np
import pytest
from skimage import data

from runtime import DiffSegError, Segmenter
from runtime.merge import aggregate_attention
from tests.runtime.clips import StandIn

pytestmark = pytest.mark.usefixtures("embedded_stays_open")

CAT = data.chelsea()[..., ::-1].copy()


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.open()


@pytest.fixture
def attended(segmenter, monkeypatch):
    made = segmenter.attend(CAT)

    def refuse(*arguments):
        raise AssertionError("the network was used")

    monkeypatch.setattr(segmenter.engine, "_infer", refuse)
    return made


def test_labels_are_those_of_a_call(segmenter, monkeypatch):
    wanted = {t: (Segmenter.open(thresholds=t) if t else segmenter)(CAT).labels for t in (None, 0.3, (0.9, 0.6, 0.3))}
    levels = segmenter.hierarchy(CAT, (0.3, 0.6))
    attended = segmenter.attend(CAT)
    monkeypatch.setattr(segmenter.engine, "_infer", lambda inputs: pytest.fail("the network was used"))
    for threshold, labels in wanted.items():
        assert np.array_equal(attended.labels(threshold=threshold), labels)
    assert len({labels.max() for labels in wanted.values()}) == 3
    found = attended.hierarchy((0.3, 0.6))
    assert np.array_equal(found.groups, levels.groups) and np.array_equal(found.finest, levels.finest)
    assert attended.result().frame is CAT and attended.hierarchy().levels == 9


def test_refinements_and_chosen_thresholds_apply(segmenter):
    with Segmenter.open(thresholds="auto", refine="snap", min_area=0.01) as careful:
        attended = careful.attend(CAT)
        result = careful(CAT)
        assert np.array_equal(attended.labels(), result.labels)


def test_a_click_gives_the_segment_and_where_its_token_looks(segmenter, attended):
    labels = attended.labels()
    aggregated = aggregate_attention(attended.pyramid)
    for x, y in ((0, 0), (450, 299), (200, 120.7), (np.int64(30), 250)):
        found = attended.at(x, y)
        assert found.index == labels[int(y), int(x)] and np.array_equal(found.mask, labels == found.index)
        row = aggregated[int(y) * 32 // 300 * 32 + int(x) * 32 // 451].reshape(32, 32)
        assert found.attention.shape == CAT.shape[:2] and found.attention.dtype == np.float32
        assert np.isclose(found.attention.mean() * 32 * 32, row.sum(), rtol=0.05)
        peak = np.unravel_index(found.attention.argmax(), CAT.shape[:2])
        token = np.unravel_index(row.argmax(), row.shape)
        assert abs(peak[0] * 32 / 300 - token[0] - 0.5) <= 1 and abs(peak[1] * 32 / 451 - token[1] - 0.5) <= 1
    assert attended.at(200, 120, threshold=0.1).mask.sum() < attended.at(200, 120, threshold=1.5).mask.sum()


@pytest.mark.parametrize("point", [(-1, 0), (0, -0.5), (451, 10), (10, 300), (float("nan"), 1), ("1", 1), (None, 1)])
def test_a_click_outside_is_refused_in_one_line(attended, point):
    with pytest.raises(DiffSegError, match=r"^expected a pixel of the frame, x from 0 to 450 and y from 0 to 299"):
        attended.at(*point)


@pytest.mark.parametrize("threshold", [0, -1, "x", (), float("nan"), True])
def test_an_invalid_threshold_is_refused(attended, threshold):
    with pytest.raises(DiffSegError, match="threshold"):
        attended.labels(threshold)


def test_an_engine_with_the_head_labels_is_refused():
    with pytest.raises(DiffSegError, match="attend: an engine with the head labels gives no maps; expected the head"):
        Segmenter(StandIn()).attend(CAT)
    with pytest.raises(DiffSegError, match="expected a frame uint8"):
        Segmenter.open().attend(CAT[..., 0])


def test_the_maps_of_another_frame_do_not_disturb(segmenter):
    attended = segmenter.attend(CAT)
    before = [level.copy() for level in attended.pyramid]
    segmenter.attend(CAT[::-1].copy())
    assert all(np.array_equal(one, other) for one, other in zip(attended.pyramid, before, strict=True))


def test_labels_are_the_callers_own(attended):
    before = attended.labels().copy()
    attended.labels()[:] = 99
    assert np.array_equal(attended.labels(), before) and attended.at(5, 5).index == before[5, 5]


def test_another_size_and_another_refinement_use_the_same_maps(segmenter, attended):
    from runtime.refine.refinement import Refinement

    small = attended.seen(CAT[::2, ::2].copy())
    assert small.labels(0.4).shape == (CAT.shape[0] // 2, (CAT.shape[1] + 1) // 2)
    assert small.at(10, 10, 0.4).attention.shape == small.frame.shape[:2]
    fine = attended.seen(refinement=Refinement(("snap",), 0.01))
    assert (fine.labels() != attended.labels()).any()
    assert np.array_equal(attended.labels(), attended.seen().labels())

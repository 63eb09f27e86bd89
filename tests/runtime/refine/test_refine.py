"""Refinement at the frame's size: borders snapped to edges, small regions absorbed."""

import sys
import types

import cv2
import numpy as np
import pytest
from skimage import data

from runtime import DiffSegError, Segmenter
from runtime.labels import LEAST_PIECE
from runtime.outputs.measure import connected_regions
from runtime.refine.absorb import absorb, cells_of
from runtime.refine.refinement import LARGEST, Refinement, split_refine
from runtime.refine.registry import REFINEMENTS, Step
from runtime.refine.snap import EPSILON, snap

pytestmark = pytest.mark.usefixtures("embedded_stays_open")


def _disc(height=240, width=320):
    """A textured disc on a textured ground, and its exact mask."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    mask = ((y - 118.3) ** 2 + (x - 151.7) ** 2 < 71**2).astype(np.int32)
    colours = np.array([[60, 90, 150], [140, 110, 70]])[mask] + rng.normal(0, 12, (height, width, 1))
    return colours.clip(0, 255).astype(np.uint8), mask


def test_snap_finds_the_edge_a_coarse_grid_missed():
    frame, mask = _disc()
    tokens = cv2.resize(mask.astype(np.float32), (16, 12), interpolation=cv2.INTER_AREA) > 0.3
    coarse = cv2.resize(tokens.astype(np.uint8), mask.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(np.int32)
    before, after = np.mean(coarse != mask), np.mean(snap(coarse, frame, (12, 16)) != mask)
    assert before > 0.03 and after < before / 5
    # A flat frame has no edge to go to: a border stays within a few pixels of where it was.
    halves = np.repeat(np.int32([[0] * 160 + [3] * 160]), 240, axis=0)
    flat = snap(halves, np.full_like(frame, 127), (12, 16))
    assert set(np.unique(flat)) == {0, 3} and np.mean(flat != halves) < 0.01


def test_snap_is_the_guided_filter():
    """Against the filter as its authors write it, window by window and at one resolution; no rectangles left out."""
    frame = cv2.resize(data.chelsea()[..., ::-1], (56, 44), interpolation=cv2.INTER_AREA)
    labels = np.zeros((44, 56), np.int32)
    labels[10:20, 8:30], labels[25:, 40:], labels[3:5, 50:] = 2, 5, 7
    colours = frame.astype(np.float64) / 255
    radius = 4  # 11×14 tokens of 4 pixels
    pad = [(radius, radius)] * 2

    def windows(plane):
        views = np.lib.stride_tricks.sliding_window_view(np.pad(plane, pad, mode="symmetric"), (2 * radius + 1,) * 2)
        return views.reshape(*plane.shape, -1)

    guide = np.stack([windows(colours[..., c]) for c in range(3)], -1)
    centred = guide - guide.mean(2, keepdims=True)
    covariance = np.einsum("hwki,hwkj->hwij", centred, centred) / guide.shape[2] + EPSILON * np.eye(3)
    values = []
    for label in (0, 2, 5, 7):
        mask = windows((labels == label).astype(np.float64))
        product = np.einsum("hwki,hwk->hwi", centred, mask) / guide.shape[2]
        slope = np.linalg.solve(covariance, product[..., None])[..., 0]
        offset = mask.mean(2) - (slope * guide.mean(2)).sum(-1)
        slope = np.stack([windows(slope[..., c]).mean(2) for c in range(3)], -1)
        values.append((slope * colours).sum(-1) + windows(offset).mean(2))
    expected = np.array([0, 2, 5, 7])[np.argmax(values, axis=0)]
    found = snap(labels, frame, (11, 14))
    assert np.mean(found != expected) < 2e-3 and np.mean(found != labels) > 0.02


def test_absorb_by_the_longest_border():
    labels = np.zeros((20, 30), np.int32)
    labels[:, 15:] = 1
    labels[5:8, 13:16] = 4  # 9 pixels, more of its border along 0
    labels[12:14, 22:24] = 0  # 4 pixels of label 0 inside 1
    labels[0:2, 0:20] = 6  # 40 pixels: stays
    found = absorb(labels, 10)
    expected = labels.copy()
    expected[5:8, 13:16], expected[12:14, 22:24] = 0, 1
    assert np.array_equal(found, expected)
    assert np.array_equal(absorb(labels, 4), labels)  # nothing is smaller than 4
    assert np.array_equal(absorb(labels, 5)[5:8, 13:16], labels[5:8, 13:16])
    assert np.array_equal(absorb(found, 10), found)


def test_small_regions_side_by_side_grow_until_they_are_large():
    stripes = np.repeat(np.arange(8, dtype=np.int32)[None], 6, axis=0)
    merged = absorb(stripes, 12)
    _, areas = np.unique(merged, return_counts=True)
    assert areas.min() >= 12 and len(areas) >= 2
    assert len(np.unique(absorb(stripes, 1000))) == 1  # the whole frame is what is left


def test_absorb_leaves_no_small_region_in_noise():
    labels = np.random.default_rng(1).integers(0, 4, (60, 80)).astype(np.int32)
    found = absorb(labels, 30)
    for label in np.unique(found):
        stats = cv2.connectedComponentsWithStats((found == label).astype(np.uint8), connectivity=4)[2]
        assert stats[1:, cv2.CC_STAT_AREA].min() >= 30
    assert set(np.unique(found)) <= set(range(4))


@pytest.mark.parametrize("area", [-1, 1.5, float("nan"), float("inf"), "10", True, None])
def test_bad_areas(area):
    with pytest.raises(ValueError, match="min_area: expected a share"):
        Refinement(min_area=area)


def test_segmenter_refines_and_keeps_proposals_in_step():
    frame = data.coffee()[..., ::-1].copy()
    plain = Segmenter.open(device="cpu", thresholds=0.15)(frame)
    segmenter = Segmenter.open(device="cpu", thresholds=0.15, refine="snap", min_area=0.01)
    result = segmenter(frame, details=True)
    assert 1 < result.count < plain.count and result.proposals.shape[0] == result.count
    assert min(segment.area for segment in result.segments) >= 0.01 * result.labels.size
    assert np.mean(plain.labels != result.labels) > 0.01
    assert np.array_equal(segmenter.clone()(frame).labels, segmenter(frame).labels)


def test_pieces_become_segments():
    """Two squares of one label and a speck of it: two segments, and nothing of the speck."""
    labels = np.zeros((40, 50), np.int32)
    labels[5:15, 5:15] = labels[20:35, 20:45] = 3
    labels[37, 2] = 3
    assert Refinement().split(labels) is None
    found, owner = Refinement(pieces="split").split(labels)
    expected = np.zeros((40, 50), np.int32)
    expected[5:15, 5:15], expected[20:35, 20:45] = 1, 2
    assert np.array_equal(found, expected) and owner.tolist() == [0, 3, 3]
    assert len(Refinement(pieces="split", min_area=1).split(labels)[1]) == 4
    assert len(Refinement(pieces="split", min_area=101).split(labels)[1]) == 2
    with pytest.raises(ValueError, match="pieces: expected one of keep, split, unlike, found 'some'"):
        Refinement(pieces="some")


def test_pieces_that_are_seen_as_one_stay_one():
    """A square in front of a ground with three bands of another segment, of which two are seen as one."""
    labels = np.zeros((40, 60), np.int32)
    labels[:, 10:20] = labels[:, 30:40] = labels[:, 50:] = 2
    alike = np.broadcast_to(np.repeat([0, 1, 0, 2, 0, 1], 2), (8, 12))
    found, owner = Refinement(pieces="unlike").split(labels, alike=alike)
    assert found[0, 5::10].tolist() == [0, 1, 0, 2, 0, 1] and owner.tolist() == [0, 2, 2]
    assert len(Refinement(pieces="split").split(labels, alike=alike)[1]) == 6
    assert len(Refinement(pieces="unlike").split(labels)[1]) == 6


@pytest.mark.parametrize("size", [(90, 70), (11, 100), (12, 16), (1, 1), (5, 3)], ids=str)
def test_enlarged_labels_are_split_as_those_of_any_size(size, monkeypatch):
    monkeypatch.setattr("runtime.labels.PIECE", 7)
    small = np.random.default_rng(1).integers(0, 4, (12, 16)).astype(np.int32)
    labels = cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    cells, heights, widths = cells_of(labels)
    assert np.array_equal(np.repeat(np.repeat(cells, widths, axis=1), heights, axis=0), labels)
    assert len(cells) <= 12 and cells.shape[1] <= 16
    for area in (0, 0.02, 0.3):
        found, owner = Refinement(pieces="split", min_area=area).split(labels)
        regions, owners = connected_regions(absorb(labels, (area or LEAST_PIECE) * labels.size))
        assert np.array_equal(found, regions) and owner.tolist() == owners


def test_pieces_keep_their_segments_proposals():
    frame = data.coffee()[..., ::-1].copy()
    opened = (Segmenter.open(device="cpu", thresholds=0.5, pieces=word) for word in ("keep", "split"))
    plain, split = (segmenter(frame, details=True) for segmenter in opened)
    assert plain.count < split.count == len(split.proposals)
    for label in range(split.count):
        of = plain.labels[split.labels == label]
        whole = np.bincount(of).argmax()  # specks of others are in it
        assert np.array_equal(split.proposals[label], plain.proposals[whole])
        assert cv2.connectedComponents((split.labels == label).astype(np.uint8), connectivity=4)[0] == 2
    assert np.bincount(split.labels.ravel()).min() >= LEAST_PIECE * split.labels.size


@pytest.mark.parametrize("refine", ["none,snap", "", "snap,edges", None])
def test_bad_refine(refine):
    with pytest.raises(
        DiffSegError,
        match="refine: expected none, or one or more of kmeans, ncut, kcut, snap, pamr with commas between them, found",
    ):
        Segmenter.open(device="cpu", refine=refine)


def test_what_the_words_of_refine_mean():
    assert split_refine("none") == ("merge", ())
    assert split_refine("kmeans, snap") == ("kmeans", ("snap",)) and split_refine("snap") == ("merge", ("snap",))
    for names in (("edges",), "snap", True, ("absorb",)):
        with pytest.raises(ValueError, match="refine: expected names of snap, pamr, found"):
            Refinement(names)


def test_a_refinement_is_an_entry_and_the_module_it_names(monkeypatch):
    """Swapping the two labels, as a module of somebody else's would."""
    module = types.ModuleType("swapping")
    module.swap = lambda labels, grid: (1 - labels if grid == (4, 5) else labels).astype(np.int32)
    monkeypatch.setitem(sys.modules, "swapping", module)
    entry = Step("swap", "swapping", "swap", inputs=("tokens",), specks=0.5)
    monkeypatch.setattr("runtime.refine.registry.REFINEMENTS", (*REFINEMENTS, entry))
    labels = np.zeros((40, 50), np.int32)
    labels[:, 30:] = 1
    labels[3:7, 3:10] = 1  # 28 pixels, below half of a token's 100
    expected = np.zeros((40, 50), np.int32)
    expected[:, :30] = 1
    frame = np.zeros((40, 50, 3), np.uint8)
    assert split_refine("kmeans,swap") == ("kmeans", ("swap",))
    assert np.array_equal(Refinement(("swap",))(labels, frame, (4, 5)), expected)
    assert np.array_equal(Refinement(("swap",))(labels, frame, (5, 4)), 1 - expected)  # swapped by nobody
    photo = data.coffee()[..., ::-1].copy()
    assert Segmenter.open(device="cpu", refine="swap,snap").stages.refinement.names == ("swap", "snap")
    assert np.array_equal(
        Refinement(("snap", "swap"))(labels, frame, (4, 5)), Refinement(("swap", "snap"))(labels, frame, (4, 5))
    )
    assert Segmenter.open(device="cpu", refine="swap")(photo).count > 1


def test_steps_are_the_functions_they_name():
    """At an ordinary size `Refinement` gives what its functions give, bit for bit."""
    frame, mask = _disc()
    labels = cv2.resize(mask[::20, ::20].astype(np.uint8), (320, 240), interpolation=cv2.INTER_NEAREST).astype(np.int32)
    grid = (12, 16)
    expected = absorb(snap(labels, frame, grid), 0.25 * labels.size / (12 * 16))
    assert np.array_equal(Refinement(("snap",))(labels, frame, grid), expected)
    for area in (500, 0.02):
        pixels = area if area >= 1 else area * labels.size
        assert np.array_equal(
            Refinement(("snap",), area)(labels, frame, grid), absorb(snap(labels, frame, grid), pixels)
        )
        assert np.array_equal(Refinement(min_area=area)(labels, frame, grid), absorb(labels, pixels))
    assert Refinement()(labels, frame, grid) is labels


def test_a_large_frame_is_refined_at_a_smaller_size(monkeypatch):
    """Borders come where they come at full size, to within the steps of the smaller picture."""
    frame, mask = _disc(480, 640)
    tokens = cv2.resize(mask.astype(np.float32), (32, 24), interpolation=cv2.INTER_AREA) > 0.3
    coarse = cv2.resize(tokens.astype(np.uint8), mask.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(np.int32)
    whole = Refinement(("snap",))(coarse, frame, (24, 32))
    assert coarse.size < LARGEST
    monkeypatch.setattr("runtime.refine.refinement.LARGEST", coarse.size // 7)
    sizes = []
    monkeypatch.setattr("runtime.refine.snap.snap", lambda *given: sizes.append(given[0].size) or snap(*given))
    found = Refinement(("snap",))(coarse, frame, (24, 32))
    assert len(sizes) == 1 and sizes[0] <= 1.01 * coarse.size / 7
    assert found.shape == coarse.shape and found.dtype == np.int32
    before, after = np.mean(coarse != mask), np.mean(found != mask)
    assert np.mean(found != whole) < 0.005 and after < before / 3
    # Areas are those of the frame.
    regions = np.zeros_like(coarse)
    regions[100:180, 100:200], regions[300:330, 300:330] = 1, 2  # 8000 and 900 pixels
    flat = np.full_like(frame, 127)
    assert set(np.unique(Refinement(("snap",), 3000)(regions, flat, (24, 32)))) == {0, 1}

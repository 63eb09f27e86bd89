"""Refinement at the frame's size: borders snapped to edges, small regions absorbed."""

import cv2
import numpy as np
import pytest
from skimage import data

from runtime import DiffSegError, Segmenter
from runtime.refine.absorb import absorb
from runtime.refine.refinement import Refinement
from runtime.refine.snap import EPSILON, snap


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


@pytest.mark.parametrize("refine", ["none,snap", "", "snap,edges", None])
def test_bad_refine(refine):
    with pytest.raises(DiffSegError, match="refine: expected none, kmeans, snap or kmeans,snap, found"):
        Segmenter.open(device="cpu", refine=refine)

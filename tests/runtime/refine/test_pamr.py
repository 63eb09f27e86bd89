"""Pixel-adaptive mask refinement: against its definition, and on edges that are known."""

import numpy as np
import pytest

from runtime.refine import pamr as module
from runtime.refine.pamr import pamr
from runtime.refine.refinement import Refinement


def _plain(labels, frame, dilations):
    """Pixel by pixel, with every sum written out."""
    height, width = labels.shape
    frame = frame.astype(np.float64)
    masks = (labels == np.unique(labels)[:, None, None]).astype(np.float64)

    def at(y, x):
        return min(max(y, 0), height - 1), min(max(x, 0), width - 1)

    offsets = [(y * d, x * d) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1)]
    outer = [offset for offset in offsets if offset != (0, 0)]
    weights = {}
    for y in range(height):
        for x in range(width):
            patch = np.array([frame[at(y + dy, x + dx)] for dy, dx in offsets])
            spread = 1e-8 + 0.1 * patch.std(axis=0, ddof=1)
            near = np.array([frame[at(y + dy, x + dx)] for dy, dx in outer])
            logits = -(np.abs(near - frame[y, x]) / spread).mean(axis=1)
            share = np.exp(logits - logits.max())
            weights[y, x] = share / share.sum()
    for _ in range(10):
        new = np.empty_like(masks)
        for (y, x), share in weights.items():
            there = np.array([masks[(slice(None), *at(y + dy, x + dx))] for dy, dx in outer])
            new[:, y, x] = share @ there
        masks = new
    return np.unique(labels)[masks.argmax(axis=0)]


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4)])
def test_equals_its_definition(dilations):
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (9, 11, 3), np.uint8)
    labels = rng.choice([2, 5, 9], (9, 11)).astype(np.int32)
    found = pamr(labels, frame, dilations)
    assert found.dtype == np.int32
    assert np.mean(found == _plain(labels, frame, dilations)) > 0.98  # ties may be rounded either way


def test_borders_move_to_the_edge():
    frame = np.full((48, 64, 3), 60, np.uint8)
    frame[:, 30:] = (90, 160, 200)
    frame += np.random.default_rng(1).integers(0, 6, frame.shape, np.uint8)
    labels = np.zeros((48, 64), np.int32)
    labels[:, 34:] = 7
    expected = np.where(np.arange(64) < 30, 0, 7)
    found = Refinement(("pamr",))(labels, frame, (6, 8))
    assert (labels == expected).mean() < 0.94 < 0.995 < (found == expected).mean()


def test_large_frames_are_refined_at_a_smaller_size(monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 24 * 32)
    labels = np.zeros((96, 128), np.int32)
    labels[:, 68:] = 3
    frame = np.zeros((96, 128, 3), np.uint8)
    frame[:, 60:] = 200
    found = pamr(labels, frame)
    assert found.shape == labels.shape and set(np.unique(found)) == {0, 3}
    assert (found == np.where(np.arange(128) < 60, 0, 3)).mean() > 0.98


def test_what_cannot_be_refined():
    flat = np.zeros((10, 12, 3), np.uint8)
    one = np.full((10, 12), 4, np.int32)
    assert pamr(one, flat) is one
    halves = np.repeat([[0], [1]], 5, axis=0).repeat(12, axis=1).astype(np.int32)
    assert np.array_equal(pamr(halves, flat), halves)  # no colours, no edges
    assert np.array_equal(pamr(np.array([[0, 1]], np.int32), flat[:1, :2]), [[0, 1]])

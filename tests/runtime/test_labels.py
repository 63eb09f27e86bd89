"""Counting and renumbering labels piece by piece."""

import numpy as np
import pytest

from runtime import labels as module
from runtime.labels import count_pixels, relabel
from runtime.outputs.measure import measure


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("shape", [(40, 7), (1, 1), (0, 5), (300,)])
def test_pieces_give_what_the_whole_gives(monkeypatch, dtype, shape):
    monkeypatch.setattr(module, "PIECE", 30)
    labels = np.random.default_rng(0).integers(0, 9, shape).astype(dtype)
    np.testing.assert_array_equal(count_pixels(labels), np.bincount(labels.ravel()))
    np.testing.assert_array_equal(count_pixels(labels, 12), np.bincount(labels.ravel(), minlength=12))
    numbers = np.arange(9, dtype=np.int32)[::-1]
    found = relabel(labels, numbers)
    np.testing.assert_array_equal(found, numbers[labels])
    assert found.dtype == np.int32


def test_measures_do_not_depend_on_the_pieces(monkeypatch):
    labels = np.random.default_rng(0).integers(0, 4, (33, 20)).astype(np.int32) * 3
    whole = measure(labels)
    monkeypatch.setattr(module, "PIECE", 50)
    for one, other in zip(whole, measure(labels), strict=True):
        np.testing.assert_allclose(one, other)
    y, x = np.nonzero(labels == 9)
    np.testing.assert_allclose(whole.centroids[3], [x.mean(), y.mean()])

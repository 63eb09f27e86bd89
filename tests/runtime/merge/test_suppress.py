"""Labels from proposals."""

import numpy as np

from runtime.merge.suppress import renumber, suppress
from tests.runtime.merge.plain import plain_suppress


def test_suppress_equals_the_plain_one():
    rng = np.random.default_rng(0)
    for shape, size in (((8, 8), (64, 64)), ((5, 9), (41, 23)), ((16, 16), (7, 5)), ((4, 4), (1, 1))):
        proposals = rng.random((12, shape[0] * shape[1])).astype(np.float32)
        found = suppress(proposals, shape, size)
        assert found.dtype == np.int32
        assert np.mean(found != plain_suppress(proposals, shape, size)) <= 0.001


def test_tie_goes_to_the_first_proposal():
    first, second = np.random.default_rng(0).random((2, 36)).astype(np.float32)
    labels = suppress(np.stack([first, second, first, second]), (6, 6), (40, 40))
    assert set(np.unique(labels)) == {0, 1}


def test_renumber():
    labels, count = renumber(np.array([[7, 2], [2, 9]], np.uint8))
    np.testing.assert_array_equal(labels, [[1, 0], [0, 2]])
    assert (labels.dtype, count) == (np.int32, 3)
    assert renumber(np.zeros((0, 4), np.int64))[1] == 0

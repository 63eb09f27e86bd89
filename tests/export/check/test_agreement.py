import numpy as np
import pytest

from export.check.agreement import matched_agreement, says_something

QUARTERS = np.kron(np.array([[0, 1], [2, 3]]), np.ones((10, 10), int))


def test_numbers_do_not_matter_but_segments_do():
    assert matched_agreement(3 - QUARTERS, QUARTERS) == 1
    assert matched_agreement(np.zeros_like(QUARTERS), QUARTERS) == 0.25
    halves = QUARTERS // 2
    assert matched_agreement(halves, QUARTERS) == 0.5
    with pytest.raises(ValueError, match="one shape"):
        matched_agreement(halves[:5], QUARTERS)


def test_the_assignment_is_optimal_where_the_largest_overlap_first_is_not():
    # Overlaps [[6, 5], [5, 0]]: the largest first gives 6 + 0, the best 5 + 5.
    found = np.array([0] * 11 + [1] * 5)[None]
    expected = np.array([0] * 6 + [1] * 5 + [0] * 5)[None]
    assert matched_agreement(found, expected) == 10 / 16


def test_images_without_segments_say_nothing():
    assert says_something(QUARTERS) and not says_something(QUARTERS // 2)

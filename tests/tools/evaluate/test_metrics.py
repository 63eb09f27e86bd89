"""Figures of merit against answers by hand, and against computations that share no code with them."""

import itertools

import numpy as np
import pytest

from tools.evaluate import metrics

STRIPES = np.repeat(np.array([[0, 0, 0, 1]], np.int32), 4, 0)


def table(truth, labels):
    return metrics.contingency(np.asarray(truth), np.asarray(labels))


def test_the_same_regions_are_perfect_whatever_their_numbers():
    same = table(STRIPES, 5 - STRIPES * 3)
    assert metrics.covering(same) == 1 and metrics.rand_index(same) == 1
    assert metrics.variation_of_information(same) == pytest.approx(0, abs=1e-12)


def test_covering_by_hand():
    # One segment: IoU 12/16 for the first region and 4/16 for the second.
    assert metrics.covering(table(STRIPES, STRIPES * 0)) == pytest.approx(0.75 * 0.75 + 0.25 * 0.25)
    # Halves: region 0 (12) against the left half (8): 8/12; region 1 (4) against the right half (8): 4/8.
    halves = np.repeat(np.array([[0, 0, 1, 1]], np.int32), 4, 0)
    assert metrics.covering(table(STRIPES, halves)) == pytest.approx(0.75 * 8 / 12 + 0.25 * 4 / 8)
    # Not symmetric: now the halves are the truth.
    assert metrics.covering(table(halves, STRIPES)) == pytest.approx(0.5 * 8 / 12 + 0.5 * 4 / 8)


def test_rand_index_and_information_by_hand():
    # Two regions of two pixels, one segment: of 6 pairs, 2 are rightly together; one bit is lost.
    lost = table([[0, 0, 1, 1]], [[0, 0, 0, 0]])
    assert metrics.rand_index(lost) == pytest.approx(1 / 3)
    assert metrics.variation_of_information(lost) == pytest.approx(1)
    # Crossed halves: two bits, and of 6 pairs only the 2 that are apart in both agree.
    crossed = table([[0, 0], [1, 1]], [[0, 1], [0, 1]])
    assert metrics.rand_index(crossed) == pytest.approx(1 / 3)
    assert metrics.variation_of_information(crossed) == pytest.approx(2)


def test_region_figures_against_the_definitions():
    """Pair by pair and region by region, with unlabelled pixels and numbers that are not used."""
    draw = np.random.default_rng(4)
    truth = draw.integers(-1, 5, (9, 11)).astype(np.int32)
    truth[truth == 2] = 7
    labels = draw.integers(0, 3, (9, 11)).astype(np.int32) * 2
    pixels = [(t, s) for t, s in zip(truth.ravel().tolist(), labels.ravel().tolist(), strict=True) if t >= 0]
    agree = [(a[0] == b[0]) == (a[1] == b[1]) for a, b in itertools.combinations(pixels, 2)]
    n = len(pixels)

    def entropy(values):
        return -sum(values.count(v) / n * np.log2(values.count(v) / n) for v in set(values))

    regions, segments = [p[0] for p in pixels], [p[1] for p in pixels]
    covering = 0.0
    for r in set(regions):
        r_pixels = {i for i in range(n) if regions[i] == r}
        overlaps = []
        for s in set(segments):
            s_pixels = {i for i in range(n) if segments[i] == s}
            overlaps.append(len(r_pixels & s_pixels) / len(r_pixels | s_pixels))
        covering += len(r_pixels) / n * max(overlaps)
    found = table(truth, labels)
    assert metrics.rand_index(found) == pytest.approx(np.mean(agree), abs=1e-12)
    assert metrics.covering(found) == pytest.approx(covering, abs=1e-12)
    information = 2 * entropy(pixels) - entropy(regions) - entropy(segments)
    assert metrics.variation_of_information(found) == pytest.approx(information, abs=1e-12)


def test_classes_by_hand_with_surplus_segments_absent_classes_and_unlabelled_pixels():
    """Classes 0, 1, 2, class 2 absent; segments 0 … 3; segment 3 lies on unlabelled pixels alone.

    rows of truth over labels:  class 0: segment 0 six times, segment 1 twice
                                class 1: segment 1 once, segment 2 four times
    Best: 0→0 (6) and 1→2 (4). Segment 1 (3 pixels) is left over: missed, or a false positive of the absent class,
    according to which of the empty columns the solver gives class 2.
    """
    truth = np.array([[0] * 8 + [1] * 5 + [-1] * 3])
    labels = np.array([[0] * 6 + [1] * 2 + [1] + [2] * 4 + [3, 0, 2]])
    counted = metrics.contingency(truth, labels, 3, 3)
    assert counted.tolist() == [[6, 2, 0, 0], [0, 1, 4, 0], [0, 0, 0, 0]]
    counts = metrics.assign(counted)
    assert counts.tp.tolist() == [6, 4, 0] and counts.fn.tolist() == [2, 1, 0]
    assert counts.fp[:2].tolist() == [0, 0]  # no false positive on unlabelled pixels
    from scipy.optimize import linear_sum_assignment

    column = linear_sum_assignment(counted, maximize=True)[1][2]
    assert column in (1, 3) and counts.fp[2] == {1: 3, 3: 0}[column]
    figures = metrics.class_figures([counts])
    assert figures["accuracy"] == pytest.approx(10 / 13)
    absent = {1: [0.0], 3: []}[column]
    assert figures["miou"] == pytest.approx(np.mean([6 / 8, 4 / 5, *absent]))


def test_more_segments_than_classes_leaves_the_rest_unmatched():
    truth = np.array([[0, 0, 0, 0, 1, 1, 1, 1]])
    labels = np.array([[0, 0, 0, 1, 2, 2, 3, 4]])
    counts = metrics.assign(metrics.contingency(truth, labels, 2, 2))
    assert counts.tp.tolist() == [3, 2] and counts.fn.tolist() == [1, 2] and counts.fp.tolist() == [0, 0]


def test_the_best_assignment_of_all_is_found():
    """Every assignment tried, on tables with more and with fewer segments than classes."""
    draw = np.random.default_rng(0)
    for columns in (4, 6):
        for _ in range(20):
            counted = draw.integers(0, 50, (4, columns))
            best = max(
                sum(int(counted[row, column]) for row, column in enumerate(choice))
                for choice in itertools.permutations(range(columns), 4)
            )
            counts = metrics.assign(counted)
            assert counts.tp.sum() == best
            assert (counts.tp + counts.fn).tolist() == counted.sum(1).tolist()


def test_figures_sum_over_images_before_they_divide():
    first = metrics.Counts(*(np.array(values) for values in ([8, 0, 0], [2, 0, 0], [0, 0, 0])))
    second = metrics.Counts(*(np.array(values) for values in ([1, 1, 0], [0, 0, 0], [9, 1, 0])))
    figures = metrics.class_figures([first, second])
    # 10 right of 20 labelled; class 2 occurs nowhere and is in no mean.
    assert figures["accuracy"] == pytest.approx(10 / 20)
    assert figures["iou"] == [9 / 20, 1 / 2, None]
    assert figures["miou"] == pytest.approx((9 / 20 + 1 / 2) / 2)


@pytest.mark.parametrize("labels", [np.zeros((2, 3), np.int32), np.full((2, 2), -1, np.int32)])
def test_maps_that_do_not_fit_are_refused(labels):
    with pytest.raises(ValueError, match="one shape"):
        metrics.contingency(np.zeros((2, 2), np.int32), labels)

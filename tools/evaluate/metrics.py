"""Figures of merit, all from one table per image: the number of pixels that a region and a segment share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def contingency(
    truth: NDArray[Any], labels: NDArray[Any], rows: int | None = None, columns: int = 0
) -> NDArray[np.int64]:
    """Pixels that region i of `truth` and segment j of `labels` share: int64 [rows, max(columns, K)].

    Args:
        truth: int [H, W]; negative values are unlabelled and left out.
        labels: int [H, W], from 0 to K − 1.
        rows: number of classes; None: as many as truth has.
        columns: the least number of columns; surplus ones are 0.

    Raises ValueError when the shapes differ, `labels` has a negative value, or `truth` has one beyond `rows`.
    """
    if truth.shape != labels.shape or labels.min() < 0:
        raise ValueError(
            f"expected two maps of one shape, with labels from 0, found {truth.shape} and {labels.shape}, "
            f"labels from {labels.min()}"
        )
    most = int(truth.max()) + 1
    rows = max(most, 0) if rows is None else rows
    if most > rows:
        raise ValueError(f"expected classes 0 to {rows - 1}, found {most - 1}")
    # The width includes segments that have unlabelled pixels only, as in the authors' code.
    columns = max(columns, int(labels.max()) + 1)
    labelled = truth >= 0
    pairs = truth[labelled].astype(np.int64) * columns + labels[labelled]
    return np.bincount(pairs, minlength=rows * columns).reshape(rows, columns).astype(np.int64)


def covering(table: NDArray[np.int64]) -> float:
    """Covering of the regions by the segments: Σ_R |R|/N · max_S IoU(R, S), 0…1.

    Arbeláez et al., "Contour Detection and Hierarchical Image Segmentation", PAMI 2011, section 3.1.3.
    """
    common = table[table.sum(1) > 0].astype(np.float64)
    regions, segments = common.sum(1), common.sum(0)
    overlap = common / (regions[:, None] + segments - common)
    return float((regions * overlap.max(1)).sum() / regions.sum())


def rand_index(table: NDArray[np.int64]) -> float:
    """Share of the pairs of pixels that are together in both or apart in both, regions and segments: 0…1.

    Its mean over the annotators is the probabilistic Rand index (Unnikrishnan et al., PAMI 2007). Computed in integers,
    so that only the final division rounds.
    """
    total = int(table.sum())
    squares = sum(int((counts.astype(object) ** 2).sum()) for counts in (table.sum(1), table.sum(0)))
    twice_disagreeing = squares - 2 * int((table[table > 0].astype(object) ** 2).sum())
    return 1.0 if total < 2 else 1 - twice_disagreeing / (total * (total - 1))


def variation_of_information(table: NDArray[np.int64]) -> float:
    """H(regions) + H(segments) − 2·I(regions; segments) in bits, 0 if they are the same (Meilă, 2005)."""
    joint = table / table.sum()
    return float(2 * _entropy(joint.ravel()) - _entropy(joint.sum(1)) - _entropy(joint.sum(0)))


def _entropy(shares: NDArray[np.float64]) -> float:
    some = shares[shares > 0]
    return float(-(some * np.log2(some)).sum())


REGION_FIGURES = {"covering": covering, "pri": rand_index, "voi": variation_of_information}


@dataclass(frozen=True, slots=True)
class Counts:
    """Pixels per class after the assignment of one image, int64 [classes] each. Their sums give the figures."""

    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]


def assign(table: NDArray[np.int64]) -> Counts:
    """Assign at most one segment to each class so that most pixels are right, and count (paper, section 4.1).

    `table`: [classes, max(classes, K)]. Every class gets a column. If the best choice is not unique (a surplus segment
    and a class that is absent), scipy's solver and the order of the columns decide, as in the authors' code.
    A false positive counts for the class of its column; pixels of columns without a class only count as missed.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(table, maximize=True)
    matched = table[rows, columns]
    return Counts(matched, table[:, columns].sum(0) - matched, table.sum(1) - matched)


def join_background(labels: NDArray[np.int32], truth: NDArray[np.int32], classes: int) -> NDArray[np.int32]:
    """Make one segment of all segments that no class but the background is matched with.

    DiffCut's many-to-one matching (Couairon et al., NeurIPS 2024, section 5). First all classes but the background are
    assigned one segment each, so that most pixels are right. Classes that are in the truth keep theirs.

    `labels`: int [H, W] from 0. `truth`: int [H, W]; its last class, `classes` − 1, is the background.
    Returns int32 [H, W].
    """
    from scipy.optimize import linear_sum_assignment

    others = classes - 1
    table = contingency(np.where(truth == others, -1, truth), labels, others, others)
    columns = linear_sum_assignment(table, maximize=True)[1]
    kept = columns[table[:, columns].max(axis=1, initial=0) > 0]
    return np.where(np.isin(labels, kept), labels, labels.max() + 1).astype(np.int32)


def intersection_over_union(tp: NDArray[Any], fp: NDArray[Any], fn: NDArray[Any]) -> NDArray[np.float64]:
    """IoU of every class; NaN for a class that neither the truth nor an assigned segment has."""
    union = np.asarray(tp + fp + fn, np.float64)
    return np.divide(tp, union, out=np.full(union.shape, np.nan), where=union > 0)


def class_figures(counts: Sequence[Counts]) -> dict[str, Any]:
    """Accuracy ΣTP/Σlabelled, mIoU (mean over classes that occur) and IoU per class, from sums over all images."""
    tp, fp, fn = (np.sum([getattr(one, name) for one in counts], axis=0) for name in ("tp", "fp", "fn"))
    iou = intersection_over_union(tp, fp, fn)
    return {
        "accuracy": float(tp.sum() / (tp.sum() + fn.sum())),
        "miou": float(np.nanmean(iou)),
        "iou": [None if np.isnan(value) else float(value) for value in iou],
    }

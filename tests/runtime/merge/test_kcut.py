"""The K-way normalised cut: against its own definition, and on attention."""

import numpy as np

from runtime.merge import MergeConfig, segment_attention
from runtime.merge.solvers.kcut import associate


def _affinity(seed=0, n=60, parts=4, between=0.25):
    """Random affinities over parts of different sizes, and the part of each token."""
    rng = np.random.default_rng(seed)
    part = rng.choice(parts, n, p=[0.4, 0.3, 0.2, 0.1])
    noise = rng.random((n, n))
    found = np.where(part[:, None] == part, 0.5 + noise / 2, between * noise)
    return ((found + found.T) / 2).astype(np.float32), part


def _association(affinity, labels):
    degrees = affinity.sum(axis=1)
    return sum(affinity[labels == k][:, labels == k].sum() / degrees[labels == k].sum() for k in np.unique(labels))


def test_finds_the_parts_from_a_damaged_start():
    for seed in range(5):
        affinity, part = _affinity(seed)
        start = np.where(np.random.default_rng(seed).random(len(part)) < 0.3, (part + 1) % 4, part)
        assert np.array_equal(associate(affinity, start), part)


def test_the_association_never_falls_and_no_segment_is_lost():
    """Starts that have nothing to do with the parts, and affinities without parts."""
    for seed in range(20):
        affinity, _ = _affinity(seed, between=0.2 + 0.04 * seed)
        start = np.random.default_rng(seed).permutation(np.arange(60) % 7)
        found = associate(affinity, start)
        assert len(np.unique(found)) == 7
        assert _association(affinity, found) >= _association(affinity, start)
    assert np.array_equal(associate(np.ones((6, 6), np.float32), np.arange(6)), np.arange(6))
    assert np.array_equal(associate(affinity, np.zeros(60, np.intp)), np.zeros(60))


def test_one_round_moves_a_token_as_the_derivative_says():
    """One token begins in the wrong segment; the sum's derivative, by differences, is largest for the other one."""
    affinity, part = _affinity(3)
    start = part.copy()
    token = int(np.flatnonzero(part == 2)[0])
    start[token] = 0
    members = np.eye(4)[start]

    def relaxed(x):
        return sum((x[:, k] @ affinity @ x[:, k]) / (affinity.sum(axis=1) @ x[:, k] ** 2) for k in range(4))

    slopes = []
    for k in range(4):
        step = np.zeros_like(members)
        step[token, k] = 1e-4
        slopes.append(relaxed(members + step) - relaxed(members - step))
    assert np.argmax(slopes) == 2 == associate(affinity, start)[token]


def test_on_attention():
    side = 16
    y, x = np.divmod(np.arange(side * side), side)
    part = (y >= side // 2) * 2 + (x >= side // 2)
    maps = np.exp(2.0 * (part[:, None] == part) + np.random.default_rng(2).normal(0, 0.3, (side**2, side**2)))
    maps = (maps / maps.sum(axis=1, keepdims=True)).astype(np.float32)
    labels = segment_attention([maps], MergeConfig((0.3,) * 3, 4, solver="kcut"), size=(side, side))
    assert np.array_equal(np.unique(labels, return_inverse=True)[1].reshape(side, side)[y, x], part)
    alone = segment_attention([maps], MergeConfig((1e9,), 4, solver="kcut"), size=(side, side))
    assert not alone.any()

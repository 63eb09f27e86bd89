"""What holds of the merge core for any maps: hypothesis looks for a pyramid that breaks it."""

import os

import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")  # of the extra dev
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from runtime.merge.segment import segment_attention  # noqa: E402
from runtime.pyramid.config import MergeConfig  # noqa: E402
from tests.runtime.merge.plain import GRIDS, random_pyramid  # noqa: E402

# Few examples, the same ones each time, so that a run of all tests stays quick. EXAMPLES=1000 in the environment: more.
EXAMPLES = int(os.environ.get("EXAMPLES", "8"))
quick = settings(max_examples=EXAMPLES, derandomize=EXAMPLES < 100, deadline=None, database=None)
SIZE = (37, 29)


@st.composite
def pyramids(draw, batch=1):
    """Finite rows that are not negative and not all 0: like attention, flat, of one pixel, with zeros, large, small."""
    grids = draw(st.sampled_from([*GRIDS, [(2, 2)], [(3, 2), (1, 1)]]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frames = []
    for _ in range(batch):
        kind = draw(st.sampled_from(["attention", "any", "flat", "spikes", "zeros"]))
        maps = random_pyramid(rng, grids, draw(st.sampled_from([0.0, 0.01, 3.0, 300.0])))
        for level in maps:
            n = level.shape[-1]
            if kind == "any":
                level[:] = rng.random((n, n)) ** draw(st.sampled_from([1, 9]))
            elif kind == "flat":
                level[:] = 1 / n
            elif kind == "spikes":
                level[:] = np.eye(n)[rng.permutation(n)]
            elif kind == "zeros":
                level[rng.random((n, n)) < 0.9] = 0
            level += level.sum(axis=1, keepdims=True) < 1e-30
            level *= draw(st.sampled_from([1.0, 1e-3, 1e6])) / level.sum(axis=1, keepdims=True)
        frames.append(maps)
    return grids, [np.stack(levels) for levels in zip(*frames, strict=True)]


@st.composite
def configs(draw, grids):
    least = min(grids[0])
    if least < 2:
        hypothesis.reject()
    thresholds = draw(st.lists(st.sampled_from([1e-6, 0.1, 0.5, 1.1, 30.0]), min_size=1, max_size=4))
    return MergeConfig(tuple(thresholds), draw(st.integers(2, min(least, 16))))


@quick
@given(st.data())
def test_labels_are_in_range_and_a_batch_is_its_frames(data):
    grids, maps = data.draw(pyramids(batch=2))
    config = data.draw(configs(grids))
    labels = segment_attention(maps, config, size=SIZE, grids=grids)
    assert labels.shape == (2, *SIZE) and labels.dtype == np.int32
    assert labels.min() >= 0 and labels.max() < config.grid**2
    for number in range(2):
        alone = segment_attention([level[number] for level in maps], config, size=SIZE, grids=grids)
        assert np.array_equal(alone, labels[number])


@quick
@given(st.data())
def test_rows_may_be_scaled_by_powers_of_two(data):
    """Rows are made to sum to 1, and a power of two changes no digit of that."""
    grids, maps = data.draw(pyramids())
    config = data.draw(configs(grids))
    powers = np.random.default_rng(data.draw(st.integers(0, 999)))
    scaled = [level * np.float32(2) ** powers.integers(-8, 9, (*level.shape[:-1], 1)) for level in maps]
    one, other = (
        segment_attention([level.astype(np.float32) for level in each], config, size=SIZE, grids=grids)
        for each in (maps, scaled)
    )
    assert np.array_equal(one, other)


@quick
@given(st.data())
def test_how_maps_are_stored_changes_nothing(data):
    grids, maps = data.draw(pyramids())
    config = data.draw(configs(grids))
    expected = segment_attention(maps, config, size=SIZE, grids=grids)
    offset = [np.empty(level.size * 4 + 1, np.uint8)[1:].view(np.float32) for level in maps]  # not aligned
    for level, store in zip(maps, offset, strict=True):
        store[:] = level.ravel()
    stored = (
        [np.asfortranarray(level) for level in maps],
        [np.repeat(level, 2, axis=-1)[..., ::2] for level in maps],
        [level[:, ::-1, ::-1].copy()[:, ::-1, ::-1] for level in maps],
        [store.reshape(level.shape) for level, store in zip(maps, offset, strict=True)],
    )
    for other in stored:
        before = [level.copy() for level in other]
        for level in other:
            level.flags.writeable = False
        assert np.array_equal(segment_attention(other, config, size=SIZE, grids=grids), expected)
        assert all(np.array_equal(one, two) for one, two in zip(before, other, strict=True))

"""The embedding of a picture by the mutual information of its colours."""

import numpy as np
import pytest

from tools.tiny.mutual_information import REACH, _pairs, embed


def _two_textures(seed: int = 0) -> np.ndarray:
    """uint8 [128, 128, 3]: cells of 4×4 pixels, on the left of two far greys, on the right of two between them."""
    rng = np.random.default_rng(seed)
    left, right = rng.choice([40, 200], (32, 16)), rng.choice([90, 150], (32, 16))
    grey = np.concatenate([left, right], axis=1) + rng.integers(-3, 4, (32, 32))
    return np.repeat(grey, 4, axis=0).repeat(4, axis=1)[..., None].repeat(3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("texture", [False, True])
def test_colours_that_often_meet_are_one_thing(texture: bool):
    first = embed(_two_textures(), (32, 32), 0.05, 1.5, texture)[..., 0]
    left, right = first[:, :15], first[:, 17:]
    low, high = sorted((left, right), key=np.mean)
    assert low.max() < high.min()  # although the greys of the left are further from each other than from the right's


def test_embedding_is_the_same_in_every_run():
    picture = _two_textures(1)
    assert np.array_equal(embed(picture, (32, 32), 0.05, 1.5, False), embed(picture, (32, 32), 0.05, 1.5, False))


def test_a_flat_picture_is_no_error():
    assert np.isfinite(embed(np.full((64, 64, 3), 90, np.uint8), (16, 16), 0.035, 2.0, True)).all()


@pytest.mark.parametrize("shape", [(6, 9), (3, 3), (2, 40), (40, 2)])
def test_every_pair_within_reach_once(shape: tuple[int, int]):
    first, second, _ = _pairs(*shape)
    (y, x), (v, u) = np.divmod(first, shape[1]), np.divmod(second, shape[1])
    assert (np.hypot(v - y, u - x) <= REACH).all()
    found = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    places = [(y, x) for y in range(shape[0]) for x in range(shape[1])]
    near = sum(0 < np.hypot(a - c, b - d) <= REACH for a, b in places for c, d in places) // 2
    assert len(found) == len(first) == near

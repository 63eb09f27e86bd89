from dataclasses import replace

import numpy as np
import pytest

from tools.scenes.draw import colour_pieces, draw_scene, mask_of, neighbours, paint, place_scene
from tools.scenes.textures import FAMILIES, random_texture


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_a_seed_stands_for_one_scene(size):
    first, again, other = draw_scene(3, size), draw_scene(3, size), draw_scene(4, size)
    assert first.frame.dtype == np.uint8 and first.frame.shape == (*size, 3)
    assert first.mask.dtype == np.int32 and first.mask.shape == size
    assert np.array_equal(first.frame, again.frame) and np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.frame, other.frame)


def test_splits_never_share_a_scene():
    frames = [draw_scene(7, (64, 64), split=split).frame for split in ("train", "development", "test")]
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])
    assert not np.array_equal(frames[1], frames[2])


def test_masks_are_exact():
    """What paint fills is what the mask says: without noise and texture each region has one colour."""
    rng = np.random.default_rng(5)
    pieces, mask = place_scene(rng, (96, 96))
    assert np.array_equal(mask_of(pieces, (96, 96)), mask)
    assert np.array_equal(np.unique(mask), np.arange(len(pieces)))
    pieces = colour_pieces(rng, pieces, mask, 0.0)
    frame = paint(rng, pieces, mask).astype(float)
    for index, piece in enumerate(pieces):
        assert np.abs(frame[mask == index].mean(0) - piece.colour).max() < 1.0


def test_half_of_the_neighbours_share_their_mean_colour():
    shared, distances = [], []
    for seed in range(25):
        scene = draw_scene(seed, share=0.5, split="test")
        means = np.array([scene.frame[scene.mask == i].mean(0) for i in range(scene.mask.max() + 1)])
        apart = np.array([np.abs(means[a] - means[b]).max() for a, b in neighbours(scene.mask)])
        shared.extend(apart < 2)
        distances.extend(apart[apart >= 2])
    assert 0.4 <= np.mean(shared) <= 0.6
    assert np.median(distances) > 15


def test_nobody_shares_when_told_so():
    scene = draw_scene(2, share=0.0)
    means = [scene.frame[scene.mask == i].mean(0) for i in range(scene.mask.max() + 1)]
    assert all(np.abs(means[a] - means[b]).max() > 4 for a, b in neighbours(scene.mask))


def test_neighbours_need_contact():
    mask = np.zeros((20, 20), np.int32)
    mask[:, 10:] = 1
    mask[:3, :3] = 2  # touches 0 along six pixel edges
    assert neighbours(mask) == [(0, 1), (0, 2)]
    assert neighbours(mask, contact=7) == [(0, 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_textures_are_functions_of_place(family):
    texture = random_texture(np.random.default_rng(1), family)
    x = np.linspace(-90, 90, 500, dtype=np.float32)
    whole, part = texture(x, x[::-1].copy()), texture(x[100:200], x[::-1][100:200].copy())
    assert whole.shape == (500,) and np.isfinite(whole).all() and np.abs(whole).max() < 4
    assert np.allclose(whole[100:200], part)


@pytest.mark.parametrize("bad", [{"seed": -1}, {"seed": 0, "size": (8, 64)}, {"seed": 0, "share": 1.5}])
def test_bad_arguments_are_named(bad):
    with pytest.raises(ValueError, match="a scene needs"):
        draw_scene(**bad)


def test_a_piece_among_all_families_of_textures_is_drawn():
    """Of one colour with every neighbour it has no texture left of its own, and takes any."""
    rng = np.random.default_rng(0)
    textured = [family for family in FAMILIES if family != "plain"]
    base = place_scene(rng, (32, 32))[0][0]
    pieces = [replace(base, texture=random_texture(rng, family)) for family in (*textured, "plain")]
    mask = np.full((8, 8 * len(textured)), len(textured), np.int32)  # the last piece below all others
    mask[:4] = np.repeat(np.arange(len(textured)), 8)
    coloured = colour_pieces(rng, pieces, mask, 1.0)
    assert len({piece.colour for piece in coloured}) == 1
    assert coloured[-1].texture.family in textured

"""Colours that differ where segments touch, stay over a clip, and are drawn as the documentation says."""

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from runtime.outputs.draw import borders, draw_overlay, paint
from runtime.outputs.palette import FAR, Painter, palette
from tests.runtime.outputs.palette_search import search

FRAME = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


def lab(colours):
    return rgb2lab(colours[:, ::-1] / 255)


def smallest(colours, formula=None):
    """Smallest difference between two of the colours."""
    values = lab(colours)
    one, other = np.triu_indices(len(values), 1)
    if formula:
        return formula(values[one], values[other]).min()
    return np.linalg.norm(values[one] - values[other], axis=1).min()


def cells(count, shape=(240, 320), seed=0):
    """A partition of the picture into `count` segments, most of which touch several others."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 1, (count, 2)) * shape
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.argmin((y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2, -1).astype(np.int32)


def nearest_that_touch(labels, colours):
    """Smallest difference in CIELAB between two segments that share a pixel's side."""
    values = lab(colours)
    gaps = [
        np.linalg.norm(values[one] - values[other], axis=-1)[one != other]
        for one, other in ((labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1]))
    ]
    return np.concatenate(gaps).min()


@pytest.mark.parametrize(("count", "cie1976", "ciede2000"), [(8, 63, 30), (16, 40, 21), (32, 27, 13), (64, 20, 9)])
def test_colours_are_far_apart(count, cie1976, ciede2000):
    assert smallest(palette(count)) >= cie1976
    assert smallest(palette(count), deltaE_ciede2000) >= ciede2000


def test_any_run_of_indices_is_far_apart():
    for start in (1, 40, 100, 65_000):
        assert smallest(palette(start + 64)[start:]) >= 20
    assert np.array_equal(palette(65_536)[:64], palette(64)) and palette(0).shape == (0, 3)


def test_no_colour_is_like_a_border_or_black():
    lightness = lab(palette(64))[:, 0]
    assert lightness.min() >= 30 and lightness.max() <= 88


def test_the_table_is_what_the_search_finds():
    assert np.array_equal(palette(64)[:, ::-1], search())


@pytest.mark.parametrize("count", [5, 16, 40, 200])
def test_segments_that_touch_differ(count):
    labels = cells(count)
    colours = Painter()(labels)
    assert len(colours) == labels.max() + 1 and nearest_that_touch(labels, colours) >= FAR
    if count <= 16:
        assert np.array_equal(colours, palette(len(colours)))
    elif count == 200:
        assert nearest_that_touch(labels, palette(count)) < 5  # why the painter is there


def test_colours_stay_over_a_clip():
    """Segments come, go and move; each keeps the colour of its first frame, whatever comes later."""
    painter, known = Painter(), {}
    for time in range(12):
        labels = np.roll(cells(30 + 8 * time, seed=1), 9 * time, axis=1)
        labels[labels % 5 == time % 5] = 3  # a fifth of them is out of sight
        colours = painter(labels)
        for index in np.unique(labels).tolist():
            assert known.setdefault(index, colours[index].tolist()) == colours[index].tolist()
    assert len(known) > 100
    first = Painter()(cells(60))
    assert np.array_equal(first, Painter()(cells(60)))


def test_an_identity_of_a_long_clip():
    labels = np.full((40, 50), 70_000, np.int32)
    labels[:, 20:30], labels[:, 30:] = 64, 0  # 64 and 0 have one colour in the palette
    colours = Painter()(labels)
    assert colours.shape == (70_001, 3) and nearest_that_touch(labels, colours) >= FAR
    assert np.array_equal(paint(labels, colours), colours[labels])


@pytest.mark.parametrize("count", [1, 7, 256, 257, 3000])
def test_paint_looks_colours_up(count):
    labels = np.random.default_rng(count).integers(0, count, (700, 90)).astype(np.int32)
    labels[0, 0] = count - 1
    assert np.array_equal(paint(labels), palette(count)[labels])
    colours = np.random.default_rng(1).integers(0, 256, (count + 3, 3), dtype=np.uint8)
    assert np.array_equal(paint(labels, colours), colours[labels])
    with pytest.raises(ValueError, match=rf"colours: expected at least {count}, one for each label, found {count - 1}"):
        paint(labels, colours[: count - 1])


def test_borders():
    labels = np.zeros((5, 6), np.int32)
    labels[2:, 3:] = 300
    expected = np.zeros((5, 6), bool)
    expected[1, 3:] = expected[2:, 2] = True
    assert np.array_equal(borders(labels), expected)
    wide = borders(labels, 2)
    assert wide.dtype == bool and (wide & ~expected).any() and not (expected & ~wide).any()
    assert not borders(np.zeros((1, 1), np.int32)).any()


@pytest.mark.parametrize("opacity", [0, 0.3, 0.5, 1])
def test_overlay(opacity):
    labels = cells(9, FRAME.shape[:2])
    before = FRAME.copy()
    found = draw_overlay(FRAME, labels, opacity)
    expected = FRAME * (1 - opacity) + palette(9)[labels] * opacity
    edges = borders(labels)
    assert (found[edges] == 255).all() and np.abs(found - expected)[~edges].max() <= 0.51
    assert np.array_equal(before, FRAME) and found.dtype == np.uint8


def test_overlay_refuses_what_does_not_fit():
    labels = cells(9, FRAME.shape[:2])
    with pytest.raises(ValueError, match=r"labels: expected the frame's size \[60, 80\], found \[60, 79\]"):
        draw_overlay(FRAME, labels[:, 1:])
    with pytest.raises(ValueError, match=r"opacity: expected 0 to 1, found 1\.5"):
        draw_overlay(FRAME, labels, 1.5)

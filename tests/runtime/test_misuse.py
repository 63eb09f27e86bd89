"""Arguments of a wrong type or value, all over the Python API: one line that says what is wrong."""

import numpy as np
import pytest

from runtime import DiffSegError, Segmenter
from runtime.hierarchy import Hierarchy
from runtime.merge import MergeConfig, segment_attention
from runtime.outputs.draw import draw_overlay
from runtime.result import Result
from tests.runtime.clips import draw

ODD = (
    None,
    "x",
    b"x",
    -1,
    0,
    1.5,
    float("nan"),
    float("inf"),
    True,
    [],
    {},
    (1, 2),
    10**30,
    object(),
    np.ones(2),
    np.ones((2, 2)),
)
MAPS = [np.full((16, 16), 1 / 16, np.float32)]
SMALL, PER_TENSOR = MergeConfig(grid=2), MergeConfig(grid=2, weights="per-tensor")
HIERARCHY = Hierarchy((0.5,), (1,), np.zeros((1, 1), np.int32), np.zeros((4, 4), np.int32), {})
RESULT = Result(np.zeros((4, 4), np.int32), 1, {})

# Each function gets a segmenter and an odd value. What it takes is no misuse, and is named by its place among ODD.
MISUSES = {
    "open device": (lambda _, odd: Segmenter.open(device=odd), ()),
    "open engine": (lambda _, odd: Segmenter.open(odd, "cpu"), (0,)),
    "open backend": (lambda _, odd: Segmenter.open(None, "cpu", backend=odd), (0,)),
    "open options": (lambda _, odd: Segmenter.open(None, "cpu", options=odd), (0, 10)),
    "open threads": (lambda _, odd: Segmenter.open(None, "cpu", options={"threads": odd}), (0,)),
    "call": (lambda segmenter, odd: segmenter(odd), ()),
    "map": (lambda segmenter, odd: list(segmenter.map(odd)), (9, 10)),
    "map one": (lambda segmenter, odd: list(segmenter.map([odd])), ()),
    "stream": (lambda segmenter, odd: list(segmenter.stream(odd)), (9, 10)),
    "stream one": (lambda segmenter, odd: list(segmenter.stream([odd])), ()),
    "temporal": (lambda segmenter, odd: list(segmenter.stream([draw(0)], temporal=odd)), (0, 8)),
    "every": (lambda segmenter, odd: list(segmenter.stream([draw(0)], every=odd)), (12,)),
    "skip_similar": (lambda segmenter, odd: list(segmenter.stream([draw(0)], skip_similar=odd)), (8,)),
    "warm_start": (lambda segmenter, odd: list(segmenter.stream([draw(0)], warm_start=odd)), (8,)),
    "hierarchy": (lambda segmenter, odd: segmenter.hierarchy(draw(0), odd), (0, 11, 14)),
    "attend": (lambda segmenter, odd: segmenter.attend(odd), ()),
    "level of a hierarchy": (lambda _, odd: HIERARCHY.labels(odd), (3, 4)),
    "mask": (lambda _, odd: RESULT.mask(odd), (4,)),
    "save kinds": (lambda _, odd: RESULT.save("x", odd), ()),
    "save stem": (lambda _, odd: RESULT.save(odd, "labels"), (1,)),
    "thresholds": (lambda _, odd: MergeConfig(thresholds=odd), (11, 14)),
    "grid": (lambda _, odd: MergeConfig(grid=odd), (12,)),
    "weights": (lambda _, odd: MergeConfig(weights=odd), (11, 14)),
    "solver": (lambda _, odd: segment_attention(MAPS, MergeConfig(grid=2, solver=odd), size=(8, 8)), ()),
    "pyramid": (lambda _, odd: segment_attention(odd, size=(8, 8)), ()),
    "level": (lambda _, odd: segment_attention([odd], size=(8, 8)), ()),
    "config": (lambda _, odd: segment_attention(MAPS, odd, size=(8, 8)), (0,)),
    "size": (lambda _, odd: segment_attention(MAPS, SMALL, size=odd), (11, 14)),
    "grids": (lambda _, odd: segment_attention(MAPS, SMALL, size=(8, 8), grids=odd), (0,)),
    "layers": (
        lambda _, odd: segment_attention(MAPS, MergeConfig(grid=2, weights="per-tensor"), size=(8, 8), layers=odd),
        (),
    ),
    "device": (lambda _, odd: segment_attention(MAPS, SMALL, size=(8, 8), device=odd), ()),
    "overlay frame": (lambda _, odd: draw_overlay(odd, RESULT.labels), ()),
    "overlay labels": (lambda _, odd: draw_overlay(draw(0), odd), ()),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_one_line(request, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    # The stand-in takes the place of every engine that is opened.
    segmenter = None if name.startswith("open") else Segmenter(request.getfixturevalue("stand_in"))
    function, taken = MISUSES[name]
    for place, odd in enumerate(ODD):
        if place in taken:
            continue
        with pytest.raises((DiffSegError, ValueError, IndexError)) as caught:
            function(segmenter, odd)
            pytest.fail(f"{odd!r} was taken")
        assert "\n" not in str(caught.value)
        assert not isinstance(caught.value, UnicodeError)


def test_an_error_is_one_line_whatever_was_found():
    assert "\n" not in str(DiffSegError(f"expected a frame, found {np.ones((3, 3))!r}"))
    assert str(DiffSegError("a  b\x1b[2J.png: is empty")) == r"a b\x1b[2J.png: is empty"
    assert str(DiffSegError("a  b.png: is empty")) == "a  b.png: is empty"

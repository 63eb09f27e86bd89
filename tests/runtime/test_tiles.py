"""Large pictures in tiles: seams that are not seen, small things that are, and memory that tiles bound."""

import tracemalloc

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from runtime import DiffSegError, Segmenter
from runtime.engine.base import Engine
from runtime.engine.spec import EngineSpec, Level
from runtime.errors import UsageError
from runtime.merge.seams import Links, Part, group, link, seam
from runtime.refine.refinement import Refinement
from runtime.segment import app
from runtime.tiles.layout import OVERLAP, parse_tiles, place_tiles
from tests.runtime.clips import StandIn

SIDE, TOKENS = 64, 16


class ByColour(Engine):
    """Tokens look at the tokens of their own colour, of eight colours. `calls`: frames it was given."""

    def __init__(self):
        self.spec = EngineSpec(
            **{"source": "by-colour", "revision": None, "head": "attention", "height": SIDE, "width": SIDE, "batch": 1},
            levels=(Level(TOKENS, TOKENS, 1),),
            **{"timestep": 300, "prompt": "", "precision": "fp32", "storage": "fp32", "latent_scaling": 1.0},
            **{"blocks": ("down", "mid", "up"), "thresholds": (1.0, 1.0, 1.0), "grid": 8},
        )
        self.device = self.asked = "cpu"
        self.calls = 0

    def _infer(self, inputs):
        self.calls += 1
        (frame,) = inputs["frame"]
        colours = cv2.resize(frame, (TOKENS, TOKENS), interpolation=cv2.INTER_AREA).reshape(-1, 3) > 128
        maps = np.where((colours[:, None] == colours).all(axis=2), 1, 1e-6)
        return [(maps / maps.sum(axis=1, keepdims=True))[None].astype(np.float32)]

    def clone(self):
        return self


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Threads of the merge would only wait for each other, and each has scratch memory of its own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def segmenter():
    return Segmenter(ByColour())


def scene(height=200, width=330):
    """Four areas and five small squares: a frame, and its segments."""
    labels = np.zeros((height, width), np.int32)
    labels[:, width // 2 :] = 1
    labels[height * 2 // 3 :] += 2
    for number, (y, x) in enumerate(((30, 40), (30, 250), (90, 90), (160, 60), (110, 300))):
        labels[y : y + 12, x : x + 12] = 4 + number
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [200, 200, 60], *[[250, 250, 250]] * 5], np.uint8)
    return colours[labels], labels


def test_regions_are_whole_and_small_things_are_found(segmenter):
    frame, truth = scene()
    whole, tiled = segmenter(frame).labels, segmenter(frame, tiles="auto")
    assert tiled.labels.dtype == np.int32 and tiled.labels.shape == truth.shape
    assert tiled.count == len(np.unique(tiled.labels)) == tiled.labels.max() + 1
    for region in range(4):  # each of them is in several tiles
        inside = cv2.erode((truth == region).astype(np.uint8), np.ones((9, 9))) > 0
        assert len(np.unique(tiled.labels[inside])) == 1, region
    assert len({tuple(np.unique(tiled.labels[truth == region])[:1]) for region in range(4)}) >= 3
    found = sum(
        any(
            (tiled.labels[truth == small] == label).mean() > 0.5 and (tiled.labels == label).sum() < 4 * 144
            for label in np.unique(tiled.labels[truth == small])
        )
        for small in range(4, 9)
    )
    lost = sum((whole == label).sum() < 4 * 144 for small in range(4, 9) for label in np.unique(whole[truth == small]))
    assert found >= 4 and lost <= 2


def test_labels_do_not_depend_on_where_tiles_are(segmenter):
    """Of two areas with a straight border, whichever way the picture is cut."""
    frame = np.zeros((190, 250, 3), np.uint8)
    frame[:, 97:] = 200
    for tiles in ("auto", (2, 3), (1, 4), (3, 1)):
        labels = segmenter(frame, tiles=tiles).labels
        assert labels.max() == 1, tiles
        assert (labels != (np.arange(250) >= 97)).mean() < 0.03, tiles


def test_a_picture_of_the_engines_size_is_the_untiled_run(segmenter):
    frame = scene(SIDE, SIDE)[0]
    calls = segmenter.engine.calls
    tiled = segmenter(frame, tiles="auto")
    assert segmenter.engine.calls == calls + 1 and tiled.count >= 2
    assert np.array_equal(tiled.labels, segmenter(frame).labels)
    assert set(tiled.milliseconds) == {"resize", "network", "merge", "labels", "total"}


@pytest.mark.parametrize("length", [64, 65, 100, 112, 113, 200, 1000, 8660])
def test_tiles_cover_every_pixel_and_overlap(length):
    for axis in place_tiles((length, length), (SIDE, SIDE), "auto"):
        assert axis.side == (SIDE if length > SIDE else length)
        ends = [start + axis.side for start in axis.starts]
        assert axis.starts[0] == 0 and ends[-1] == length
        assert all(end - start >= int(OVERLAP * SIDE) for start, end in zip(axis.starts[1:], ends, strict=False))
    rows, columns = place_tiles((1000, 2000), (SIDE, SIDE), (3, 4))
    assert (len(rows.starts), len(columns.starts)) == (3, 4) and rows.starts[-1] + rows.side == 1000
    assert all(b - a <= 0.76 * columns.side for a, b in zip(columns.starts, columns.starts[1:], strict=False))


def test_tiles_that_are_too_small_are_refused(segmenter):
    frame = scene()[0]
    with pytest.raises(DiffSegError, match="expected at least the engine's frame, 64x64 pixels, found 43x") as refusal:
        segmenter(frame, tiles=(6, 2))
    assert "at most 3 x 6 tiles fit, or use auto" in str(refusal.value)
    segmenter(frame, tiles=(3, 6))
    with pytest.raises(DiffSegError, match="64x64 pixels, found 40x"):
        segmenter(frame[:40], tiles=(1, 2))


@pytest.mark.parametrize("tiles", [(0, 2), (1,), (1.5, 2), (True, 2), 3, "3", "0x2", "huge", [2, 2]])
def test_other_tiles_are_refused(segmenter, tiles):
    with pytest.raises(DiffSegError, match="tiles: expected"):
        segmenter(scene()[0], tiles=tiles)


def test_words_of_the_command_line():
    assert parse_tiles("auto") == "auto" and parse_tiles("3x4") == (3, 4)
    with pytest.raises(UsageError, match="--tiles: expected auto, or rows x columns such as 3x4, found '3by4'"):
        parse_tiles("3by4")


def test_what_tiles_do_not_go_with():
    frame = scene()[0]
    with pytest.raises(DiffSegError, match="tiles: an engine with the head labels gives no maps"):
        Segmenter(StandIn())(frame, tiles="auto")
    with pytest.raises(DiffSegError, match="tiles: a picture in tiles has no details"):
        Segmenter(ByColour())(frame, tiles="auto", details=True)


@pytest.mark.slow
def test_memory_beyond_picture_and_labels_is_bounded_by_tiles(segmenter):
    peaks = []
    for height in (150, 450, 1350):  # the first one imports what it needs
        frame = np.tile(scene(150, 200)[0], (height // 150, 1, 1))
        tracemalloc.start()
        result = segmenter(frame, tiles="auto")
        peaks.append(tracemalloc.get_traced_memory()[1] - result.labels.nbytes)
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 250_000  # a kilobyte for each of 75 tiles; the labels have 720,000 more bytes


def test_map_and_refinements(segmenter):
    frame = scene()[0][:130, 100:300]
    careful = Segmenter(segmenter.engine, refinement=Refinement(("snap",), 300))
    (one, other) = careful.map([frame, frame[:100]], tiles="auto")
    assert one.labels.shape == frame.shape[:2] and other.labels.shape == (100, 200)
    assert min(segment.area for segment in one.segments) >= 300


def test_who_stops_does_not_wait_for_all_tiles(segmenter):
    frame = np.tile(scene()[0], (8, 1, 1))
    rows, columns = place_tiles(frame.shape[:2], (SIDE, SIDE), "auto")
    results = segmenter.map([scene()[0][:100], frame, frame], tiles="auto")
    next(results)
    results.close()
    assert segmenter.engine.calls < len(rows.starts) * len(columns.starts) // 2


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runtime.segmenter.open_engine", lambda *arguments, **options: ByColour())
    frame = scene()[0][:130, 100:300]
    cv2.imwrite("large.png", frame)
    for tiles, skipped in (("auto", 0), ("auto", 1), ("2x2", 0)):
        result = CliRunner().invoke(app, ["large.png", "--tiles", tiles, "--save", "labels,npz", "--resume"])
        assert result.exit_code == 0 and f", {skipped} skipped" in result.stderr, (tiles, result.stderr)
    with np.load("segmented/large_labels.npz") as archive:
        assert '"tiles": [2, 2]' in str(archive["settings"])
    labels = cv2.imread("segmented/large_labels.png", cv2.IMREAD_UNCHANGED)
    assert np.array_equal(labels, Segmenter(ByColour())(frame, tiles=(2, 2)).labels)
    cases = {
        ("--tiles", "9x9"): (1, "large.png: tiles 9x9: expected at least the engine's frame"),
        ("--tiles", "big"): (2, "--tiles: expected auto, or rows x columns"),
        ("--tiles", "auto", "--hierarchy", "1"): (2, "--tiles: a hierarchy is of the whole frame"),
    }
    for options, (status, text) in cases.items():
        result = CliRunner().invoke(app, ["large.png", *options])
        assert result.exit_code == status and text in result.stderr and result.stderr.count("\n") == 1, result.stderr


def part(nodes, maps):
    nodes, maps = np.array(nodes, np.int32), np.array(maps, np.float32)
    return Part(nodes, maps, np.unique(nodes).astype(np.int32))


def test_links_are_sure_where_pixels_and_maps_agree():
    one = part([[0, 0, 1, 1]] * 4, [[0.7, 0.3], [0.2, 0.8]])
    same = link(one, part([[2, 2, 3, 3]] * 4, [[7, 3], [2, 8]]), 0.5)
    assert same.pairs.tolist() == [[0, 2], [1, 3]] and same.sure.all() and same.strength.min() > 0.99
    # The same pixels, other maps.
    other = link(one, part([[2, 2, 3, 3]] * 4, [[1e-4, 1], [1, 1e-4]]), 0.5)
    assert other.pairs.tolist() == [[0, 2], [1, 3]] and not other.sure.any()
    # Half of a node, and its map.
    half = link(part([[0, 0, 0, 1]] * 4, one.maps), part([[2, 3, 3, 3]] * 4, [[0.7, 0.3], [0.69, 0.31]]), 0.1)
    found = dict(zip(map(tuple, half.pairs.tolist()), half.sure.tolist(), strict=True))
    assert found == {(0, 2): False, (0, 3): True}  # (1, 3) shares all of 1, but its map is another


def links(*rows):
    pairs, sure, strength = zip(*rows, strict=True)
    return Links(np.array(pairs, np.int32), np.array(sure), np.array(strength, float))


def test_the_view_of_the_whole_picture_decides():
    seen = np.array([[50, 0], [40, 10], [0, 60], [1, 0], [55, 0]])
    chain = links(((0, 1), True, 0.9), ((1, 2), True, 0.79), ((2, 3), True, 0.5), ((3, 4), False, 0.9))
    # 0 and 2 are told apart; 3 is not seen, and 4 in doubt.
    assert group(chain, seen, 20, 90).tolist() == [0, 0, 1, 1, 2]
    strong = links(((0, 1), True, 0.9), ((1, 2), True, 0.81))
    assert group(strong, seen, 20, 90).tolist() == [0, 0, 0, 1, 2]
    # Two large groups stay apart, 0 with 1, and 2: 60 pixels are more than a tile, and than four times the least.
    assert group(strong, seen, 14, 59).tolist() == [0, 0, 1, 2, 3]
    assert group(strong, seen, 14, 60).tolist() == group(strong, seen, 15, 59).tolist() == [0, 0, 0, 1, 2]
    assert group(links(((0, 4), False, 0.1)), seen, 20, 90).tolist() == [0, 1, 2, 3, 0]
    assert group(links(((0, 4), False, 0.1)), seen, 200, 90).tolist() == [0, 1, 2, 3, 4]


def test_a_seam_goes_where_tiles_agree():
    disagree = np.ones((30, 20), bool)
    rows = np.arange(30)
    path = (10 + 4 * np.sin(rows / 6)).astype(int)
    disagree[rows, path] = False
    assert np.array_equal(seam(disagree, np.zeros(disagree.shape, np.float32)), path)
    edges = np.zeros(disagree.shape, np.float32)
    edges[:, 13] = 1
    assert (seam(np.ones_like(disagree), edges) == 13).all()
    assert (seam(np.zeros_like(disagree), edges) == 10).all()

"""DiffCut's protocol: its crop and sizes, its matching of the background, and whole runs with known answers."""

import json

import numpy as np
import pytest

from runtime.errors import DiffSegError
from tests.runtime.colours import write_engine
from tests.tools.evaluate import drawn
from tests.tools.evaluate.running import figures, run
from tests.tools.evaluate.test_datasets import bilinear, nearest
from tools.evaluate import classical, metrics
from tools.evaluate.datasets import centre_crop, open_dataset
from tools.evaluate.masks import read_protocol, shipped_protocol, with_diffcut

SIDE = 1025  # a picture of which the protocol takes the first 1024 pixels as they are
COLOURS = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 0], [255, 255, 255]])  # BGR of segments


def columns(*ends):
    """int [128, 128]: the number of the stripe of each column."""
    return np.broadcast_to(np.searchsorted(ends, np.arange(128), side="right"), (128, 128))


def enlarged(labels):
    """Every pixel of 128×128 as 8×8 pixels, and one row and column more."""
    return np.pad(labels.repeat(8, 0).repeat(8, 1), ((0, 1), (0, 1)), mode="edge")


def save_picture(path, segments):
    drawn.save(path, COLOURS[enlarged(segments)].astype(np.uint8))


@pytest.fixture
def by_colour(monkeypatch):
    """The method one-segment finds the drawn segments."""

    def nearest_colour(frame):
        return np.abs(frame[:, :, None].astype(int) - COLOURS).sum(-1).argmin(-1).astype(np.int32)

    monkeypatch.setitem(classical.METHODS, "one-segment", nearest_colour)


def test_the_square_and_the_sizes(tmp_path):
    """Against the protocol's rules, written out: one pixel less than the shorter side, 1024, every eighth pixel."""
    rng = np.random.default_rng(0)
    for height, width, top, left in ((31, 44, 0, 7), (45, 30, 8, 0)):
        frame = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        mask = rng.integers(0, 3, (height, width)).astype(np.uint8)
        side = min(height, width) - 1
        here = np.s_[top:, left:]
        assert np.array_equal(centre_crop(mask, side), mask[here][:side, :side])
        root = tmp_path / f"{height}x{width}"
        drawn.save(root / "images/a.png", frame)
        drawn.save(root / "masks/a.png", mask)
        (root / "map.json").write_text(
            json.dumps({"classes": ["a", "b"], "labels": {"0": 0, "1": 1, "2": -1}, "diffcut": {}})
        )
        data = open_dataset("folder", root, classes=root / "map.json", protocol="diffcut")
        shown, (truth,) = data.load(data.samples[0])
        assert shown.shape == (1024, 1024, 3) and truth.shape == (128, 128)
        assert np.abs(shown - bilinear(frame[here][:side, :side], 1024)).max() < 0.501
        wide = nearest(mask[here][:side, :side], 1024)
        assert np.array_equal(truth, np.array([0, 1, -1])[wide[::8, ::8]])


def test_background_segments_by_hand():
    """Classes 0 and 1, background 2. Segment 0 is in class 0, 1 and 3 in the background, 2 in both."""
    truth = np.array([[0] * 6 + [2] * 8])
    labels = np.array([[0] * 4 + [2] * 2 + [2] * 3 + [1] * 3 + [3] * 2])
    joined = metrics.join_background(labels, truth, 3)
    assert joined.tolist() == [[0] * 4 + [4] * 10]
    counts = metrics.assign(metrics.contingency(truth, joined, 3, 3))
    assert (counts.tp.tolist(), counts.fp.tolist(), counts.fn.tolist()) == ([4, 0, 8], [0, 0, 2], [2, 0, 0])
    # Without the joining the background has one segment alone.
    plain = metrics.assign(metrics.contingency(truth, labels, 3, 3))
    assert plain.tp.tolist()[2] < 8
    # A class keeps its segment, also one that is mostly background; where there is no class, all is background.
    assert metrics.join_background(np.array([[0, 0, 0, 1]]), np.array([[0, 2, 2, 2]]), 3).tolist() == [[0, 0, 0, 2]]
    assert len(np.unique(metrics.join_background(labels, np.full_like(truth, 2), 3))) == 1


@pytest.mark.slow
def test_voc_with_a_known_answer(tmp_path, by_colour):
    """A cat in the left quarter, void beside it, background; a segment of each kind, and one that is both."""
    truth = np.array([8, 255, 0])[columns(32, 36)]
    drawn.save_palette(tmp_path / "SegmentationClass/a.png", enlarged(truth))
    save_picture(tmp_path / "JPEGImages/a.jpg", columns(24, 64))
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a\n")
    (found,) = figures(tmp_path, "voc", tmp_path, "--protocol", "diffcut", "--method", "one-segment")
    cat, background = 24 / 32, 96 / (96 + 8)  # columns: found of all; all of what is called so
    assert found["iou"]["cat"] == pytest.approx(cat) and found["iou"]["background"] == pytest.approx(background)
    assert found["miou"] == pytest.approx((cat + background) / 2) and found["accuracy"] == pytest.approx(120 / 128)
    # By the data set's own protocol void does not count, and segments are matched one to one.
    (own,) = figures(tmp_path / "own", "voc", tmp_path, "--method", "one-segment")
    assert own["accuracy"] == pytest.approx((24 + 64) / 124, abs=2e-3)


def test_classes_without_background_with_a_known_answer(tmp_path, by_colour):
    """Unlabelled pixels are left out; each class has one segment."""
    truth = np.array([7, 9, 11])[columns(64, 96)]  # road, void, sky
    drawn.save(tmp_path / "masks/a.png", enlarged(truth).astype(np.uint8))
    save_picture(tmp_path / "images/a.png", columns(48, 80))
    classes = {"classes": ["road", "sky"], "labels": {"7": 0, "11": 1, "9": -1}, "diffcut": {}}
    (tmp_path / "map.json").write_text(json.dumps(classes))
    words = ("folder", tmp_path, "--classes", tmp_path / "map.json", "--protocol", "diffcut")
    (found,) = figures(tmp_path, *words, "--method", "one-segment")
    assert found["iou"] == {"road": pytest.approx(48 / 64), "sky": pytest.approx(1)}
    assert found["accuracy"] == pytest.approx((48 + 32) / 96)


def test_an_engine_of_features_by_the_protocol(tmp_path):
    """Its cut is of 128×128; the notice says that its frames are smaller than the protocol's."""
    engine = write_engine(tmp_path / "colours.onnx", (16, 16))
    truth = columns(32, 96)
    drawn.save(tmp_path / "masks/a.png", enlarged(truth).astype(np.uint8))
    save_picture(tmp_path / "images/a.png", truth)
    classes = {"classes": ["a", "b", "c"], "labels": {"0": 0, "1": 1, "2": 2}, "diffcut": {"background": "c"}}
    (tmp_path / "map.json").write_text(json.dumps(classes))
    words = ("folder", tmp_path, "--classes", tmp_path / "map.json", "--protocol", "diffcut", "--engine", engine)
    status, summary = run(tmp_path, *words, "--refine", "none", "--refine", "pamr")
    assert status == 0
    plain, refined = (row["figures"] for row in summary["results"])
    assert plain["accuracy"] == 1 and plain["segments"] == 3 and refined["accuracy"] > 0.98
    assert summary["results"][0]["settings"]["solver"] == "ncut"


def test_shipped_protocols():
    assert with_diffcut() == ["ade20k", "cityscapes-27", "coco-object", "coco-stuff-27", "context", "voc"]
    for name, classes in (("voc", 21), ("context", 60), ("coco-object", 81), ("coco-stuff-27", 27)):
        protocol = shipped_protocol(name, "diffcut")
        assert (len(protocol.classes), protocol.crop, protocol.input) == (classes, 128, 1024)
        assert protocol.background == (classes != 27) and (protocol.classes[-1] == "background") == (classes != 27)
        assert set(protocol.labels.values()) == set(range(-1, classes - protocol.background))
    voc, coco = shipped_protocol("voc", "diffcut"), shipped_protocol("coco-object", "diffcut")
    assert [voc.labels[value] for value in (0, 1, 20, 255)] == [-1, 0, 19, -1]
    assert [row["miou"] for row in voc.published] == [49.8, 65.2, 78.4]
    assert coco.images == shipped_protocol("coco-stuff-27").images
    things = {0: "person", 9: "traffic light", 12: "stop sign", 27: "umbrella", 66: "dining table", 89: "toothbrush"}
    assert {value: coco.classes[coco.labels[value]] for value in (*things, 91)} == things | {91: "background"}


def test_what_is_wrong_is_said(tmp_path):
    root = drawn.indexed(tmp_path / "set", "images", "masks", (0, 1), count=1)
    for name, options, words in (
        ("bsds500", (), "--protocol diffcut: bsds500.json has no section 'diffcut'; expected ade20k"),
        ("folder", (), "--protocol diffcut: expected a class map for a folder, found none; add --classes"),
    ):
        status, message = run(tmp_path, name, root, "--protocol", "diffcut", *options)
        assert status != 0 and words in message and len(message.strip().splitlines()) == 1
    for section in ({"crop": 100}, {"input": 0.5}, {"input": 64}):
        path = tmp_path / "map.json"
        path.write_text(json.dumps({"classes": ["a"], "labels": {"0": 0}, "diffcut": section}))
        with pytest.raises(DiffSegError, match="not a valid class map"):
            read_protocol(path, "diffcut")

"""Segments get words: the arithmetic by hand, and an engine that knows where each colour is, through every output."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from runtime import DiffSegError, Segmenter
from runtime.engine.base import Engine
from runtime.engine.spec import EngineSpec, Level
from runtime.outputs.lettering import write_names
from runtime.segment import app
from runtime.words import Names, Naming, combine, join_neighbours, joined_proposals, name_segments
from tests.runtime.clips import StandIn, small_disk, write_clip

needs_coco = pytest.mark.skipif(importlib.util.find_spec("pycocotools") is None, reason="needs the extra coco")
WORDS = ("blue", "green", "red")


class Colours(Engine):
    """Tokens look at those of their own colour, of four shades a channel; a word's map is its channel.

    So a dark and a bright red are two segments of one word.
    """

    def __init__(self, head="attention", words=WORDS, batch=1):
        self.spec = EngineSpec(
            **{"source": "colours", "revision": None, "head": head, "height": 64, "width": 64, "batch": batch},
            levels=(Level(16, 16, 2), Level(8, 8, 1)),
            **{"timestep": 300, "prompt": "", "precision": "fp32", "storage": "fp32", "latent_scaling": 1.0},
            **{"blocks": ("down", "mid", "up"), "thresholds": (1.0, 1.0, 1.0), "grid": 8, "words": words},
        )
        self.device = self.asked = "cpu"

    def _infer(self, inputs):
        outputs = [self._one(frame) for frame in inputs["frame"]]
        return [np.stack(each) for each in zip(*outputs, strict=True)]

    def _one(self, frame):
        pyramid, words = [], []
        for side in (16, 8):
            small = cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA)
            codes = (small.astype(int) // 64).reshape(-1, 3) @ [1, 4, 16]
            maps = np.where(codes[:, None] == codes, 1, 1e-6)
            pyramid.append((maps / maps.sum(axis=1, keepdims=True)).astype(np.float32))
            words.append(small.transpose(2, 0, 1)[: len(self.spec.words)].astype(np.float32) / 1000 + 0.001)
        if self.spec.head == "labels":
            labels = cv2.resize((frame.astype(int) // 64 @ [1, 4, 16]).astype(np.uint8), (64, 64))
            pyramid = [labels, np.int32(64)]
        return [*pyramid, *(words if self.spec.words else [])]

    def clone(self):
        return self


def scene():
    """Blue, green, and beside each other a dark and a bright red: a frame uint8 [96, 128, 3] BGR."""
    frame = np.zeros((96, 128, 3), np.uint8)
    frame[:48, :64], frame[:48, 64:] = (230, 0, 0), (0, 220, 0)
    frame[48:, :64], frame[48:, 64:] = (0, 0, 150), (0, 0, 250)
    return frame


def at(result, x, y):
    return result.names[int(result.labels[y, x])]


def test_shares_by_hand():
    """Two words on a grid of 2×2, a left and a right segment of four columns, of which the right has three."""
    labels = np.array([[5, 2, 2, 2]] * 4, np.int32)
    maps = np.array([[[4, 0], [0, 0]], [[1, 1], [1, 1]]], np.float32)
    names = name_segments(labels, maps, Naming(("corner", "everywhere"), threshold=0.6))
    # The corner: mean 2 in the left segment, (2·4 pixels of value 4 less the left's)/12 = 8/12 in the right, 1 overall.
    assert names.labels == (2, 5)
    np.testing.assert_allclose(names.shares, [[(2 / 3) / (5 / 3), 1 / (5 / 3)], [2 / 3, 1 / 3]], rtol=1e-6)
    assert (names[5], names.score(5), names.index(5)) == ("corner", 0.6667, 1)
    assert (names[2], names.score(2)) == ("everywhere", 0.6)
    strict = name_segments(labels, maps, Naming(("corner", "everywhere"), threshold=0.61))
    assert (strict[2], strict.score(2), strict.index(2), strict[5]) == (None, 0.6, 0, "corner")
    assert strict.indices().tolist() == [0, 0, 0, 0, 0, 1]
    with pytest.raises(KeyError, match="found 3"):
        names.index(3)


def test_a_word_that_is_twice_as_strong_everywhere_wins_nothing():
    rng = np.random.default_rng(0)
    labels, maps = rng.integers(0, 4, (30, 50)).astype(np.int32), rng.random((3, 8, 8)).astype(np.float32)
    plain, louder = (name_segments(labels, maps * factor, Naming(WORDS)) for factor in (1, [[[1]], [[7]], [[2]]]))
    np.testing.assert_allclose(plain.shares, louder.shares, rtol=1e-5)
    np.testing.assert_allclose(plain.shares.sum(axis=1), 1, rtol=1e-6)


def test_resolutions_are_weighted_as_self_attention_is():
    fine, coarse = np.zeros((1, 4, 4), np.float32), np.full((1, 2, 2), 3, np.float32)
    fine[0, 0, 0] = 8  # mean ½
    (found,) = combine([fine, coarse], [0.75, 0.25])
    assert found[0, 0] == pytest.approx(0.75 * 16 + 0.25) and found[3, 3] == pytest.approx(0.25)
    assert found.mean() == pytest.approx(1)
    assert np.array_equal(combine([fine, coarse * np.nan], [1, 0])[0], fine[0] * 2)
    with pytest.raises(ValueError, match=r"words\[1\]: expected finite numbers from 0"):
        combine([fine, coarse * np.nan], [0.5, 0.5])
    assert not combine([np.zeros((1, 2, 2), np.float32)], [1]).any()


def test_a_word_that_is_nowhere_names_nothing():
    names = name_segments(np.zeros((2, 2), np.int32), np.zeros((1, 2, 2), np.float32), Naming(("sky",)))
    assert names[0] is None and names.score(0) == 0


def test_neighbours_of_one_word_are_joined():
    labels = np.array([[0, 0, 1, 3], [2, 2, 1, 3], [4, 4, 4, 5]], np.int32)
    words = np.array([1, 1, 2, 0, 0, 1], np.int32)  # 3 and 4 have none; 5 touches no other of its word
    groups = join_neighbours(labels, words)
    assert groups.tolist() == [0, 0, 2, 3, 4, 5]
    proposals = np.array([1, 3, 9], np.float32).reshape(3, 1, 1)
    joined = joined_proposals(proposals, np.array([1, 3, 7]), np.array([0, 0, 1], np.int32))
    assert joined.ravel().tolist() == [2.5, 9]


@pytest.mark.parametrize("head", ["attention", "labels"])
def test_an_engine_with_words_names_segments(head):
    frame = scene()
    result = Segmenter(Colours(head), word_threshold=0.5)(frame)
    assert result.count == 4 and result.words.shape == (3, 16, 16)
    assert [at(result, x, y) for x, y in ((9, 9), (99, 9), (9, 80), (99, 80))] == ["blue", "green", "red", "red"]
    assert {(s.name, s.score) for s in result.segments} == {
        (result.names[s.index], result.names.score(s.index)) for s in result.segments
    }
    assert all(region["name"] in WORDS and region["score"] > 0.5 for region in result.to_json()["regions"])
    joined = Segmenter(Colours(head), merge_words=True)(frame, proposals=head == "attention")
    assert joined.count == 3 and joined.labels[80, 9] == joined.labels[80, 99] and at(joined, 99, 80) == "red"
    if head == "attention":
        assert joined.proposals.shape == (3, 16, 16)
        np.testing.assert_allclose(joined.proposals.sum(axis=(1, 2)), 1, rtol=1e-5)
    none = Segmenter(Colours(head), word_threshold=1.0)(frame)
    assert all(none.names[label] is None for label in range(4)) and none.segments[0].name is None


def test_everywhere_else_words_are_there_too():
    frame, segmenter = scene(), Segmenter(Colours(batch=None), merge_words=True)
    one = segmenter(frame)
    assert [one.names[label] for label in one.names.labels] == [
        found.names[label] for found in segmenter.map([frame]) for label in found.names.labels
    ]
    tiled = Segmenter(Colours())(np.tile(frame, (1, 2, 1)), tiles=(1, 2))
    assert at(tiled, 9, 9) == at(tiled, 137, 9) == "blue" and at(tiled, 230, 80) == "red"
    attended = segmenter.attend(frame)
    assert len(attended.pyramid) == 2 and at(attended.result(0.9), 99, 9) == "green"
    assert segmenter.hierarchy(frame, (0.5, 100.0)).counts == (3, 1)
    clip = list(segmenter.stream([frame] * 4, every=2))
    assert [at(found, 9, 9) for found in clip] == ["blue"] * 4
    assert [at(found, 99, 80) for found in Segmenter(Colours()).stream([frame] * 2, temporal=False)] == ["red"] * 2


def test_on_a_gpu_the_maps_of_words_alone_come_to_the_host(monkeypatch):
    """The merge core and the memory of the GPU are stand-ins."""
    from runtime.routes.device import DeviceRoute

    class There:
        def __init__(self, array):
            self.array = array

        def frame(self, number):
            return There(self.array[number])

    class OnDevice(Colours):
        path = Path("engine.onnx")

        def infer_on_device(self, frames):
            return [There(one) for one in self.infer(frames)]

    def run(pyramid, *arguments, **options):
        assert [level.array.shape for level in pyramid] == [(256, 256), (64, 64)]
        labels = np.repeat(np.arange(2, dtype=np.int32), 32)[:, None] * np.ones((1, 64), np.int32)
        return SimpleNamespace(labels=labels, proposals=None, segments=[2], attention=None)

    fetched = []
    monkeypatch.setattr("runtime.routes.device.to_host", lambda there: fetched.append(there) or there.array)
    monkeypatch.setattr("runtime.native.load", lambda *arguments: None)
    monkeypatch.setattr("runtime.native.device_number", lambda device: 0)
    monkeypatch.setattr("runtime.native.run", run)
    segmenter = Segmenter(OnDevice())
    segmenter.stages.route = DeviceRoute(segmenter.engine, segmenter.config)
    result = segmenter(scene())
    assert len(fetched) == 2 and result.count == 2 and result.names[1] == "red"
    np.testing.assert_array_equal(result.words, Segmenter(Colours())(scene()).words)


def test_without_words_nothing_changes():
    result = Segmenter(Colours(words=()))(scene())
    assert result.names is None and result.words is None and result.segments[0].name is None
    assert set(result.to_json()["regions"][0]) == {"index", "area", "box", "centroid"}
    assert "category_id" in result.to_panoptic()[1][0] and "score" not in result.to_panoptic()[1][0]


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """The engine that the command line opens, in a folder with the scene."""
    engines = [Colours()]
    monkeypatch.setattr("runtime.segmenter.open_engine", lambda *arguments, **options: engines[-1])
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("scene.png", scene())
    return engines


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def read(path):
    return json.loads(Path(path).read_text())


def test_command_line_writes_words(opened):
    coco = importlib.util.find_spec("pycocotools") is not None
    kinds = "overlay,labels,panoptic,semantic" + ",coco" * coco
    options = ("--word-threshold", 0.7, "--merge-words", "--json", "--hierarchy", "0.5,2")
    done = run("scene.png", "--save", kinds, *options)
    assert done.exit_code == 0, done.stderr
    line = json.loads(done.stdout)
    assert sorted(region["name"] for region in line["regions"]) == ["blue", "green", "red"]
    assert "segmented/semantic.json" in line["outputs"]
    classes = read("segmented/semantic.json")["classes"]
    assert classes == ["unnamed", *WORDS]
    semantic = cv2.imread("segmented/scene_semantic.png", cv2.IMREAD_UNCHANGED)
    assert semantic.dtype == np.uint8 and semantic.shape == (96, 128)
    assert [classes[semantic[y, x]] for x, y in ((9, 9), (99, 9), (9, 80), (99, 80))] == ["blue", "green", "red", "red"]
    categories = [(1, "segment"), (2, "blue"), (3, "green"), (4, "red")]
    for name in ("panoptic", "instances")[: 1 + coco]:
        listed = read(f"segmented/{name}.json")
        assert [(one["id"], one["name"]) for one in listed["categories"]] == categories
        found = listed["annotations"] if name == "instances" else listed["annotations"][0]["segments_info"]
        assert sorted(one["category_id"] for one in found) == [2, 3, 4] and all(one["score"] > 0.7 for one in found)
    overlay, plain = cv2.imread("segmented/scene_overlay.png"), cv2.imread("segmented/scene_level1_overlay.png")
    assert (overlay[15:35, 15:50] > 200).all(axis=2).sum() > 15, "no letters"
    assert plain.shape == overlay.shape
    unnamed = run("scene.png", "--save", "semantic", "--word-threshold", 1, "--output", "none")
    assert unnamed.exit_code == 0 and not cv2.imread("none/scene_semantic.png", cv2.IMREAD_UNCHANGED).any()


@needs_coco
def test_pictures_of_engines_with_other_words_are_listed_together(opened):
    cv2.imwrite("other.png", scene()[:, ::-1])
    assert run("scene.png", "--save", "coco,semantic").exit_code == 0
    opened.append(Colours(words=("green", "sea", "red")))
    failed = run("other.png", "--save", "semantic")
    assert failed.exit_code == 1 and "expected the words of this engine, found those of another one" in failed.stderr
    assert run("other.png", "--save", "coco").exit_code == 0
    opened.append(Colours(words=()))
    cv2.imwrite("third.png", scene())
    assert run("third.png", "--save", "coco").exit_code == 0
    for _ in range(2):  # the second time from the assembled file alone
        listed = read("segmented/instances.json")
        assert [one["name"] for one in listed["categories"]] == ["segment", "blue", "green", "red", "sea"]
        by_image = [{a["category_id"] for a in listed["annotations"] if a["image_id"] == image} for image in (1, 2, 3)]
        assert by_image == [{2, 3, 4}, {3, 5, 4}, {1}]
        Path("segmented/instances.jsonl").unlink()
        assert run("third.png", "--save", "coco").exit_code == 0


@pytest.mark.parametrize("name", ["scene.png", "clip.mp4"])
def test_a_full_disk_is_one_line(opened, name):
    write_clip("clip.mp4", 2)
    with small_disk(60):
        result = run(name, "--save", "semantic")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "semantic.json" in result.stderr and ("disk" in result.stderr or "cannot be written" in result.stderr)
    assert not [path for path in Path("segmented").rglob("*") if path.is_file()]


@needs_coco
def test_a_clip_has_words(opened):
    write_clip("clip.mp4", 4)
    done = run("clip.mp4", "--save", "overlay,coco,panoptic,semantic", "--json", "--every", 2)
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 4 and all(region["name"] in WORDS for line in lines for region in line["regions"])
    tracks = read("segmented/clip_instances.json")
    assert [one["name"] for one in tracks["categories"]] == ["segment", *WORDS]
    assert {one["category_id"] for one in tracks["annotations"]} <= {2, 3, 4}
    panoptic = read("segmented/clip_panoptic.json")
    assert [one["name"] for one in panoptic["categories"]] == ["segment", *WORDS]
    assert cv2.imread("segmented/clip_semantic/000003.png", cv2.IMREAD_UNCHANGED).max() > 0


@needs_coco
def test_results_save_words(tmp_path):
    result = Segmenter(Colours())(scene(), keep_frame=True)
    written = result.save(tmp_path / "a", "overlay,semantic,coco")
    assert {path.name for path in written} == {"a_overlay.png", "a_semantic.png", "semantic.json", "instances.json"}
    assert [one["name"] for one in result.to_coco()["categories"]] == ["segment", *WORDS]
    assert not np.array_equal(result.overlay(), Segmenter(Colours(words=()))(scene(), keep_frame=True).overlay())
    with pytest.raises(DiffSegError, match="semantic: expected a result with words, found one without"):
        Segmenter(StandIn())(scene()).save(tmp_path / "b", "semantic")


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ((), ("--word-threshold", 0.5), "--word-threshold: expected an engine with words, found one without"),
        ((), ("--merge-words",), "--merge-words: expected an engine with words, found one without; 'python -m export"),
        ((), ("--save", "semantic"), "--save semantic: expected an engine with words, found one without"),
        (WORDS, ("--word-threshold", 1.5), "--word-threshold: expected a share from 0 to 1, found 1.5"),
        (WORDS, ("--word-threshold", "nan"), "--word-threshold: expected a share from 0 to 1, found nan"),
    ],
)
def test_refusals(opened, words, options, message):
    opened.append(Colours(words=words))
    failed = run("scene.png", *options)
    assert failed.exit_code == 2 and message in failed.stderr and len(failed.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sky", ""], "not empty"),
        (["sky", "tree", "Sky"], "each word once, found 'Sky' twice"),
        (["sky,tree"], "without commas"),
        (["a\nb"], "not empty"),
        (["segment"], "choose another word"),
        ([f"w{number}" for number in range(256)], "at most 255 words, found 256"),
        ("sky", "expected a list"),
        ([3], "expected a text"),
    ],
)
def test_a_sidecar_with_other_words_is_refused(words, message):
    text = Colours().spec.to_json()
    assert EngineSpec.from_json(text, "x").words == WORDS
    assert EngineSpec.from_json(text, "x").word_outputs == ("words_16x16", "words_8x8")
    damaged = json.dumps({**json.loads(text), "words": words})
    with pytest.raises(DiffSegError, match=message):
        EngineSpec.from_json(damaged, "x")


def test_names_are_where_they_can_be_read():
    labels = np.zeros((200, 300), np.int32)
    labels[:, 200:] = 1
    labels[:3, :3] = 2
    shares = np.eye(3, dtype=np.float32)
    picture = np.full((200, 300, 3), 90, np.uint8)
    write_names(picture, labels, Names(("Bäume", "a long name for a narrow place", "x"), (0, 1, 2), shares, 0.5))
    changed = (picture != 90).any(axis=2)
    assert changed[80:120, 60:140].any() and changed[80:120, 210:290].any() and not changed[:10, :10].any()
    assert not changed[:60].any() and not changed[140:].any()

"""Photographs as a stream: stages overlap, order is kept, one that fails harms no other, memory is bounded."""

import json
import threading

import cv2
import numpy as np
import pytest
from skimage import data
from typer.testing import CliRunner

from runtime import DiffSegError, Segmenter
from runtime.frames.resize import resize_frame
from runtime.frames.still import Still
from runtime.segment import app
from runtime.stages import Stages
from runtime.stream import job as jobs
from tests.runtime.clips import StandIn, draw, write_clip

pytestmark = pytest.mark.usefixtures("embedded_stays_open")

CAT = data.chelsea()[..., ::-1].copy()


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_map_gives_what_calls_give(folder):
    segmenter = Segmenter.open(device="cpu", refine="snap")
    frames = [CAT, CAT[:, ::-1].copy(), CAT[::2, ::3].copy()]
    cv2.imwrite("cat.png", CAT)
    found = list(segmenter.map(["cat.png", *frames[1:], folder / "cat.png"]))
    assert len(found) == 4
    for result, frame in zip(found, [*frames, CAT], strict=True):
        alone = segmenter(frame)
        assert np.array_equal(result.labels, alone.labels) and result.count == alone.count
        assert {"decode", "resize", "network", "merge", "labels", "total"} == set(result.milliseconds)


def test_map_reads_its_inputs_as_it_needs_them_and_stages_overlap():
    """The network waits at each frame until the frame two later is being resized: one after the other would hang."""
    resized = threading.Semaphore(0)

    class Waiting(StandIn):
        def _infer(self, inputs):
            if self.calls < 8:
                assert resized.acquire(timeout=20)
            return super()._infer(inputs)

    segmenter = Segmenter(Waiting())
    resize, asked = segmenter.stages.resize, []

    def noted(frame):
        if len(asked) > 2:
            resized.release()
        return resize(frame)

    segmenter.stages.resize = noted

    def frames():
        for number in range(12):
            asked.append(number)
            yield draw(number)
        resized.release(100)

    results = segmenter.map(frames())
    assert not asked  # nothing happens before the first result is asked for
    next(results)
    assert len(asked) <= 12
    assert len(list(results)) == 11


def test_map_stops_when_nobody_asks_any_more():
    segmenter = Segmenter(StandIn())
    asked = []

    def frames():
        while True:
            asked.append(1)
            yield draw(0)

    for _, _result in zip(range(3), segmenter.map(frames()), strict=False):
        pass
    count = len(asked)
    assert count < 40
    threading.Event().wait(0.1)
    assert len(asked) == count
    segmenter.engine.ahead.clear()  # what was announced and is not wanted any more
    assert segmenter(draw(1)).count == 2


def test_map_raises_or_gives_errors():
    segmenter = Segmenter(StandIn())
    inputs = [draw(0), "gone.png", draw(1)]
    found = list(segmenter.map(inputs, errors="give"))
    assert [type(one).__name__ for one in found] == ["Result", "DiffSegError", "Result"]
    results = segmenter.map(inputs)
    next(results)
    with pytest.raises(DiffSegError, match=r"gone\.png"):
        next(results)
    with pytest.raises(DiffSegError, match="expected 'raise' or 'give'"):
        segmenter.map(inputs, errors="ignore")
    for bad in (np.zeros((4, 4), np.uint8), None):
        with pytest.raises(DiffSegError, match="expected a frame uint8"):
            list(segmenter.map([bad]))
    assert isinstance(next(segmenter.map([None, draw(0)], errors="give")), DiffSegError)
    with pytest.raises(DiffSegError, match="expected a list of paths"):
        segmenter.map("photos/")


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_filled_with_different_frames(monkeypatch, batch):
    engine = StandIn(batch=batch)
    seen = []
    infer = engine._infer
    monkeypatch.setattr(engine, "_infer", lambda inputs: seen.append(inputs["frame"].copy()) or infer(inputs))
    segmenter = Segmenter(engine)
    frames = [draw(number) for number in range(10)]
    results = list(segmenter.map(frames))
    assert [len(frame) for frame in seen] == [batch] * -(-10 // batch)
    given = np.concatenate(seen)[:10]
    assert all(np.array_equal(one, segmenter.stages.resize(frame)) for one, frame in zip(given, frames, strict=True))
    for result, frame in zip(results, frames, strict=True):
        assert np.array_equal(result.labels, segmenter(frame).labels)
    # Each batch was announced before it came: an engine on a GPU has it there by then.
    assert not engine.ahead


class Particular(StandIn):
    """Refuses a batch that has the one frame. As on a GPU, its outputs last until its next call."""

    def __init__(self, refused, batch):
        super().__init__(batch=batch)
        self.refused, self.sizes, self.last = refused, [], None

    def prefetch(self, frames):
        pass

    def _infer(self, inputs):
        self.sizes.append(len({frame.tobytes() for frame in inputs["frame"]}))
        if self.last is not None:
            self.last[:] = 0
        if any(np.array_equal(frame, self.refused) for frame in inputs["frame"]):
            raise ValueError("a frame that\nit cannot take")
        found = super()._infer(inputs)
        self.last = found[0]
        return found


@pytest.mark.parametrize("overlaps", [True, False])
def test_an_error_of_the_network_is_of_one_frame(overlaps):
    """The frames of a batch that fails run one by one. Without overlap each is merged before the next one runs."""
    frames = [draw(number) for number in range(10)]
    engine = Particular(resize_frame(frames[5], 32, 32), 4)
    segmenter = Segmenter(engine)
    if overlaps:  # the stand-in's outputs are read later, in another thread
        engine._infer_whole, engine._infer = engine._infer, lambda inputs: [*map(np.copy, engine._infer_whole(inputs))]
    segmenter.stages.route.overlaps = overlaps
    results = list(segmenter.map(frames, errors="give"))
    assert [isinstance(result, DiffSegError) for result in results] == [number == 5 for number in range(10)]
    assert "a frame that it cannot take" in str(results[5])
    assert engine.sizes == [4, 4, 1, 1, 1, 1, 2]
    for frame, result in zip(frames, results, strict=True):
        if result is not results[5]:
            assert np.array_equal(result.labels, Segmenter(StandIn())(frame).labels)


def test_frames_wait_outside_while_those_inside_are_large(monkeypatch):
    """At most the pixels allowed are between resizing and the end, beside one frame that may be larger."""
    monkeypatch.setattr(jobs, "MOST_PIXELS", 2 * 48 * 64)
    inside, most = set(), []
    resize, finish = Stages.resize, Stages.finish

    def resized(self, frame):
        most.append(len(inside))
        inside.add(id(frame))
        return resize(self, frame)

    def finished(self, merged, frame, **options):
        inside.discard(id(frame))
        return finish(self, merged, frame, **options)

    monkeypatch.setattr(Stages, "resize", resized)
    monkeypatch.setattr(Stages, "finish", finished)
    assert len(list(Segmenter(StandIn(0.002)).map([draw(n) for n in range(20)]))) == 20
    assert max(most) <= 3


@pytest.mark.parametrize("every", [1, 3])
def test_a_batch_that_does_not_fit_stays_short(tmp_path, monkeypatch, every):
    """Eight frames of a batch are more than may be inside at once: the batch must not wait for them for ever."""
    monkeypatch.setattr(jobs, "MOST_PIXELS", 3 * 48 * 64)
    segmenter = Segmenter(StandIn(batch=8))
    frames = [draw(number) for number in range(20)]
    done = []
    watch = threading.Thread(target=lambda: done.extend(segmenter.map(frames)), daemon=True)
    watch.start()
    watch.join(60)
    assert not watch.is_alive() and len(done) == 20
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4", 20)
    monkeypatch.setattr(Segmenter, "open", lambda *arguments, **options: segmenter)
    result = run("clip.mp4", "--every", every, "--save", "labels", "--json")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 20


def test_large_pictures_wait_before_they_are_decoded(tmp_path, monkeypatch):
    """Their size is read from their head: no more are decoded than may be inside."""
    monkeypatch.setattr(jobs, "MOST_PIXELS", 100 * 100)
    inside, most = [], []
    read, finish = Still.read, Stages.finish

    def reads(self):
        inside.append(1)
        most.append(len(inside))
        return read(self)

    def finished(self, merged, frame, **options):
        inside.pop()
        return finish(self, merged, frame, **options)

    monkeypatch.setattr(Still, "read", reads)
    monkeypatch.setattr(Stages, "finish", finished)
    for number in range(8):
        name = f"{number}.{('jpg', 'png', 'bmp')[number % 3]}"
        cv2.imwrite(str(tmp_path / name), cv2.resize(draw(number), (90, 90)))
    assert len(list(Segmenter(StandIn()).map(sorted(tmp_path.iterdir())))) == 8
    assert max(most) <= 2  # the one before may still be on its way out


def test_regions_and_outputs_in_json(folder):
    cv2.imwrite("cat.png", CAT)
    result = run("cat.png", "--json", "--save", "labels")
    line = json.loads(result.stdout)
    labels = cv2.imread("segmented/cat_labels.png", cv2.IMREAD_UNCHANGED)
    assert line["outputs"] == ["segmented/cat_labels.png"] and line["segments"] == len(line["regions"])
    for index, region in enumerate(line["regions"]):
        mask = labels == index
        rows, columns = np.nonzero(mask)
        assert region["index"] == index and region["area"] == mask.sum()
        assert region["box"] == list(cv2.boundingRect(mask.astype(np.uint8)))
        assert region["centroid"] == pytest.approx([columns.mean(), rows.mean()], abs=0.006)


def test_a_hierarchy_is_written_level_by_level(folder):
    cv2.imwrite("cat.png", CAT)
    result = run("cat.png", "--json", "--hierarchy", "0.8,0.2,0.4", "--save", "labels")
    assert result.exit_code == 0, result.stderr
    line = json.loads(result.stdout)
    expected = Segmenter.open().hierarchy(CAT, (0.2, 0.4, 0.8))
    assert [level["threshold"] for level in line["hierarchy"]] == [0.2, 0.4, 0.8]
    assert [level["segments"] for level in line["hierarchy"]] == list(expected.counts)
    names = ["cat_labels.png", *(f"cat_level{number}_labels.png" for number in range(3))]
    assert line["outputs"] == [f"segmented/{name}" for name in names]
    for number in range(3):
        labels = cv2.imread(f"segmented/cat_level{number}_labels.png", cv2.IMREAD_UNCHANGED)
        assert np.array_equal(labels, expected.labels(number))
    assert np.array_equal(cv2.imread("segmented/cat_labels.png", -1), Segmenter.open()(CAT).labels)
    said = run("cat.png", "--hierarchy", "0.8,0.2,0.4", "--save", "labels").stderr
    assert f"{line['segments']} segments, 3 levels: segmented/cat_labels.png, " in said
    bad = run("cat.png", "--hierarchy", "0,1")
    assert bad.exit_code == 2 and "error: --hierarchy: expected" in bad.stderr


def test_options_of_clips_say_that_they_do_nothing(folder, stand_in):
    cv2.imwrite("cat.png", CAT)
    result = run("cat.png", "--start", "2", "--every", "3")
    assert result.exit_code == 0
    assert "warning: --start, --every: for clips; has no effect on photographs" in result.stderr


def test_a_segmenter_closes():
    with Segmenter.open(device="cpu") as segmenter:
        assert segmenter(CAT).count > 1
    for attempt in (lambda: segmenter(CAT), lambda: segmenter.map([CAT]), segmenter.clone):
        with pytest.raises(DiffSegError, match="this Segmenter is closed"):
            attempt()


def test_an_unknown_option_is_named():
    with pytest.raises(DiffSegError, match="did you mean thresholds"):
        Segmenter.open(device="cpu", threshold=0.5)
    with pytest.raises(DiffSegError, match=r"precision: .*options=\{'precision': 'bf16'\}"):
        Segmenter.open(device="cpu", precision="bf16")


def test_levels_that_would_be_written_over_another_input(folder):
    for name in ("cat", "cat_level1"):
        cv2.imwrite(f"{name}.png", CAT)
    result = run("cat.png", "cat_level1.png", "--hierarchy", "0.5,1")
    assert result.exit_code == 1 and "cat.png: expected names that its levels do not have" in result.stderr
    assert not (folder / "segmented").exists()

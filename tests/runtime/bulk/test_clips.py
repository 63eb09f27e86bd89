"""Clips in parts: each frame once, identities that go through."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.bulk import read
from runtime.bulk.cutting import cut_clip
from runtime.bulk.reader import read_rows
from runtime.bulk.rows import labels_of
from runtime.result import Result
from runtime.track.match import join_identities
from tests.runtime.clips import draw, read_clip

pytest.importorskip("scipy")
av = pytest.importorskip("av")


def write(path, frames, rate=25):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.gop_size = 6
        for image in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        out.mux(stream.encode(None))
    return str(path)


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """24 frames of one scene, and 12 of another."""
    monkeypatch.chdir(tmp_path)
    Path("clips").mkdir()
    other = [255 - cv2.rotate(draw(number), cv2.ROTATE_180) for number in range(12)]
    return write("clips/a.mp4", [draw(number) for number in range(24)] + other)


def test_a_clip_is_cut_at_changes_of_scene_and_at_a_length(clip):
    def shape(*settings):
        return [(part["start"], part["first"], part["stop"]) for part in cut_clip("a", clip, *settings)]

    assert shape(0, 4) == [(0, 0, 24), (24, 24, 36)]
    assert shape(10, 4) == [(0, 0, 10), (6, 10, 20), (16, 20, 24), (24, 24, 34), (30, 34, 36)]
    assert shape(10, 9)[1:3] == [(1, 10, 20), (11, 20, 24)]
    parts = cut_clip("a", clip, 10, 4)
    assert [part["begin"] for part in parts[:3]] == ["0", "6/25", "16/25"] and parts[-1]["end"] is None
    assert [part["end"] for part in parts[:2]] == ["2/5", "4/5"]
    (lost,) = cut_clip("b", "nowhere.mp4", 10, 4)
    assert "nowhere.mp4" in lost["error"]


@pytest.mark.slow
def test_parts_of_a_clip_are_joined(clip, here, segment):
    Path("clips/bad.mp4").write_bytes(b"no clip")
    summary = here("clips", clips=(10, 6))
    assert (summary["frames"], summary["errors"], summary["stopped"]) == (37, 1, None)
    assert summary["shards"]["all"] == 6
    rows = [row for row in read_rows("out") if row["error"] is None]
    assert [row["id"] for row in rows] == [f"a.mp4#{number}" for number in range(36)]
    times, frames = read_clip(clip)
    assert [row["time"] for row in rows] == [float(moment) for moment in times]
    serial = [result.labels for result in segment.segmenter.stream(frames)]
    found = np.stack([labels_of(row) for row in rows])
    assert (found == np.stack(serial)).mean() > 0.999
    assert [row["error"] for row in read_rows("out") if row["id"] == "bad.mp4"] != [None]
    assert not list(Path("out/_diffseg/parts").glob("*"))
    result = dict(read("out"))["a.mp4#30"]
    np.testing.assert_array_equal(result.identities, np.unique(result.labels))
    again = here("clips", clips=(10, 6))
    assert again["shards"] == {"all": 6, "before": 6, "now": 0}


def test_parts_that_were_segmented_are_joined_after_a_kill(clip, here, segment, monkeypatch):
    from runtime.bulk import clips

    with monkeypatch.context() as killed:
        killed.setattr(clips, "join_clip", lambda *given: {"failed": "killed", "full": True})
        assert here("clips", clips=(10, 6))["stopped"] == "killed"
        killed.setattr(clips, "join_clip", lambda *given: {"failed": "damaged", "full": False})
        assert here("clips", clips=(10, 6))["stopped"] == "damaged"
    assert len(list(Path("out/_diffseg/parts").glob("*"))) == 5 and not list(Path("out").glob("shard-*"))
    calls = segment.segmenter.engine.calls
    summary = here("clips", clips=(10, 6))
    assert (summary["frames"], summary["stopped"], segment.segmenter.engine.calls) == (36, None, calls)
    assert len(list(read_rows("out"))) == 36


def result(labels):
    labels = np.array(labels, np.int32)
    return Result(labels, len(np.unique(labels)), {"total": 0.0}, identities=np.unique(labels).astype(np.int32))


def test_identities_of_two_trackers_are_joined_by_the_last_frame_that_both_have():
    left = np.kron([[0, 1], [2, 2]], np.ones((20, 20)))
    renamed = np.choose(left.astype(int), [7, 3, 5])
    assert join_identities([result(left)], [result(renamed)]) == {7: 0, 3: 1, 5: 2}
    # In the frame before, another one was in sight that has gone.
    early, renamed_early = left.copy(), renamed.copy()
    early[:20, :10], renamed_early[:20, :10] = 9, 11
    joined = join_identities([result(early), result(left)], [result(renamed_early), result(renamed)])
    assert joined == {7: 0, 3: 1, 5: 2, 11: 9}
    assert join_identities([], []) == {}
    fresh = renamed.copy()
    fresh[30:, 30:] = 20
    assert 20 not in join_identities([result(left)], [result(fresh)])

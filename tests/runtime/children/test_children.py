"""A crash, a hang or a flood of memory in a decoder or encoder is one line; the other inputs finish."""

import logging
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from multiprocessing import Pipe
from pathlib import Path
from threading import Event

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from runtime.children import pool
from runtime.children.channel import Channel
from runtime.errors import DiffSegError
from runtime.frames import apart, pixels
from runtime.frames.decode import decode_frame
from runtime.frames.video import open_container
from runtime.outputs import apart as movies
from runtime.segment import app
from runtime.segmenter import Segmenter
from tests.runtime.clips import StandIn, draw, read_clip, write_clip

ROOT = Path(__file__).resolve().parents[3]
HERE = "tests.runtime.children.deadly"
pytestmark = pytest.mark.skipif(not pool.is_possible(), reason="there are no child processes here")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def segment(*inputs):
    done = CliRunner().invoke(app, [*inputs, "--output", "out"])
    assert "Traceback" not in done.stderr and not list(Path().rglob("*.part"))
    return done, [line for line in done.stderr.splitlines() if line.startswith(("error: ", "warning: "))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("serve_clip", r"bad.avi: reading stopped after 0.1 s \(the decoder crashed \(SIGSEGV\)\); 3 frames"),
        ("serve_opening", r"bad.avi: the decoder crashed \(SIGSEGV\); the input is damaged"),
        ("serve_hanging", r"bad.avi: reading stopped .* gave no answer for . s and was stopped"),
        ("serve_flood", r"bad.avi: needs more memory than is available"),
    ],
)
def test_a_decoder_that_dies_is_one_line(folder, monkeypatch, stand_in, task, said):
    monkeypatch.setattr(apart, "TASK", f"{HERE}:{task}")
    if task == "serve_hanging":
        monkeypatch.setattr(pool, "LONGEST", 1.5)
    for name in ("a", "bad", "c"):
        write_clip(folder / f"{name}.avi", 6, codec="mpeg4")
    done, lines = segment("a.avi", "bad.avi", "c.avi")
    assert done.exit_code == 1 and len(lines) == 1
    assert re.search(said, lines[0]), lines
    assert len(read_clip("out/a_overlay.mp4")[0]) == len(read_clip("out/c_overlay.mp4")[0]) == 6
    if task in ("serve_clip", "serve_hanging"):  # what came before is kept
        assert len(read_clip("out/bad_overlay.mp4")[0]) == 3


@pytest.mark.slow
def test_an_encoder_that_dies_is_one_line_and_what_it_wrote_is_kept(folder, monkeypatch, stand_in):
    monkeypatch.setattr(movies, "TASK", f"{HERE}:serve_movie")
    for name in ("a", "bad"):
        write_clip(folder / f"{name}.avi", 60, codec="mpeg4", rate=Fraction(5))
    done, lines = segment("a.avi", "bad.avi")
    assert done.exit_code == 1 and len(lines) == 1 and "the encoder crashed (SIGABRT); what could be" in lines[0]
    assert len(read_clip("out/a_overlay.mp4")[0]) == 60
    assert 0 < len(read_clip("out/bad_overlay.mp4")[0]) < 30


@pytest.mark.slow
def test_a_picture_that_kills_its_decoder_is_one_error(folder, monkeypatch, caplog):
    """Also in Python, and a child that an earlier picture has damaged harms none of the next."""
    names = ["a.tif", "bad.tif", "c.tif"]
    for name in names:
        cv2.imwrite(name, draw(0))
    monkeypatch.setattr(pixels, "TASK", f"{HERE}:serve_picture")
    results = list(Segmenter(StandIn()).map(names, errors="give"))
    assert [isinstance(result, DiffSegError) for result in results] == [False, True, False]
    assert "bad.tif: the decoder crashed (SIGSEGV)" in str(results[1])
    monkeypatch.setattr(pixels, "TASK", f"{HERE}:serve_worn")
    for name in names * 2:
        assert decode_frame(Path(name).read_bytes(), name).shape == (48, 64, 3)


def _png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.slow
def test_a_small_picture_that_takes_long_is_decoded_in_a_child(monkeypatch):
    """Each scan goes over the whole picture; each text of a few bytes becomes megabytes."""
    monkeypatch.setattr(pixels, "TASK", f"{HERE}:serve_picture")
    jpeg = cv2.imencode(".jpg", draw(0), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    scan = jpeg.rindex(b"\xff\xda")
    png = cv2.imencode(".png", draw(0))[1].tobytes()
    text = _png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1000)))
    for usual, often in (
        (jpeg, jpeg[:-2] + jpeg[scan:-2] * 60 + jpeg[-2:]),
        (png, png[:33] + text * 60 + png[33:]),
        (png, png + bytes(2 << 20)),
    ):
        assert decode_frame(usual, "bad.x").shape == (48, 64, 3)
        assert decode_frame(often, "good.x").shape == (48, 64, 3)
        with pytest.raises(DiffSegError, match=r"bad.x: the decoder crashed \(SIGSEGV\)"):
            decode_frame(often, "bad.x")


def test_frames_are_the_same_as_in_this_process(folder, monkeypatch):
    write_clip(folder / "a.mp4", 12, audio="aac", turn=90)
    clips = []
    for inside in ("0", "1"):
        monkeypatch.setenv(pool.IN_PROCESS, inside)
        clips.append(open_container("file:a.mp4", "a.mp4", 0))
    kinds, forms, frames = [], [], []
    for clip in clips:
        kinds.append(type(clip).__name__)
        forms.append([getattr(clip, name) for name in ("rate", "tick", "seconds", "live", "gaps", "aspect", "audio")])
        frames.append(list(clip.read(Event())))
        clip.close()
    assert kinds == ["ApartClip", "ContainerClip"] and forms[0] == forms[1]
    assert len(frames[0]) == 12 and all(
        one[0] == other[0] and np.array_equal(one[1], other[1]) for one, other in zip(*frames, strict=True)
    )


def test_a_child_is_used_again_also_after_a_clip_that_was_left(folder):
    write_clip(folder / "a.mp4", 30)
    pool.end_all()
    for _ in range(3):
        clip = open_container("file:a.mp4", "a.mp4", 0)
        next(clip.read(Event()))
        clip.close()
    with pytest.raises(DiffSegError, match="x: is not a video"):
        open_container("file:none.mp4", "x", 0)
    child = pool.borrow(pixels.most_pixels())
    assert child.tasks == 4
    child.close()


def test_arrays_are_checked(tmp_path):
    memory = pool._shared_memory()
    ours, _theirs = Pipe()
    channel = Channel(ours, (memory,))
    where = channel.put(np.arange(6, dtype=np.uint8).reshape(1, 2, 3)) | {"shape": [1, 2, 3]}
    assert channel.take(where).tolist() == [[[0, 1, 2], [3, 4, 5]]]
    for wrong in (
        {"slot": 1},
        {"slot": "0"},
        {"shape": [1 << 40]},
        {"shape": [-1, 2]},
        {"type": "object"},
        {"shape": 3},
    ):
        with pytest.raises(ValueError):
            channel.view(where | wrong)
    with pytest.raises(ValueError):
        channel.take(where | {"shape": [6]})
    with pytest.raises(OSError):
        os.ftruncate(memory, 0)  # who reads it would crash
    channel.close()


def test_children_end_with_their_parent(tmp_path):
    program = """
import os, runtime.children.pool as pool, time
child = pool.borrow()
print(child._process.pid, flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
        except OSError:
            break
        time.sleep(0.02)
    assert time.monotonic() < until, "the child lives"


def test_where_no_child_can_be_started_work_is_done_here(folder, monkeypatch, caplog):
    pool.end_all()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(pool._Pool, "broken", False)
    cv2.imwrite("a.tif", draw(0))
    with caplog.at_level(logging.WARNING, "diffseg"):
        assert decode_frame(Path("a.tif").read_bytes(), "a.tif").shape == (48, 64, 3)
        assert decode_frame(Path("a.tif").read_bytes(), "a.tif").shape == (48, 64, 3)
    assert [record.message.startswith("no child process can be started") for record in caplog.records] == [True]

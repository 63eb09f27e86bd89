"""Kinds of source are entries of a registry; standard input may be a picture; frames carry their number."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import DiffSegError, UsageError
from runtime.frames import registry
from runtime.frames.clip import frames_between
from runtime.frames.find import find_sources
from runtime.frames.opening import open_clip, settle_sources
from runtime.frames.source import Source
from runtime.frames.still import read_still
from tests.runtime.clips import draw, write_clip

DRAWN = """
from fractions import Fraction
from runtime.frames.clip import Clip
from tests.runtime.clips import draw

class DrawnClip(Clip):
    rate = tick = Fraction(1)

    def __init__(self, source, options):
        super().__init__(source.name)
        self.count = int(source.address.partition("://")[2])
        self.say = options.say

    def read(self, stop):
        for number in range(self.count):
            yield number * self.tick, draw(number)
        self.say("drawn")
"""


def frames_of(source, start=Fraction(0), end=None, **options):
    clip = open_clip(source, start=start, **options)
    try:
        return list(frames_between(clip, start, end, threading.Event()))
    finally:
        clip.close()


@contextmanager
def standard_input(data):
    """A pipe that holds `data` in the place of standard input."""
    reading, writing = os.pipe()
    kept = os.dup(0)
    feeder = threading.Thread(target=lambda: feed(writing, data))
    try:
        os.dup2(reading, 0)
        feeder.start()
        yield
        while os.read(0, 1 << 20):
            pass
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reading)
        feeder.join()


def feed(descriptor, data):
    """In small pieces, as a slow program writes."""
    with os.fdopen(descriptor, "wb", buffering=0) as pipe:
        for piece in (data[:5], data[5:7], data[7:]):
            pipe.write(piece)


def stdin_source():
    (source,), failures = find_sources(["-"])
    assert not failures
    return source


def test_a_kind_is_added_by_an_entry(tmp_path, monkeypatch):
    (tmp_path / "drawn_source.py").write_text(DRAWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    entry = registry.SourceKind("drawn", "drawn_source:DrawnClip", pattern=r"test://\d+", outputs=lambda text: "drawn")
    monkeypatch.setattr(registry, "SOURCES", {"drawn": entry, **registry.SOURCES})
    sources, _ = find_sources(["test://3", "test://host/live"])
    assert [(source.kind, str(source.target)) for source in sources] == [("drawn", "drawn"), ("stream", "host_live")]
    said = []
    found = frames_of(sources[0], say=said.append)
    assert [(frame.number, frame.time) for frame in found] == [(0, 0), (1, 1), (2, 2)] and said == ["drawn"]
    assert all(np.array_equal(frame.image, draw(frame.number)) for frame in found)


def test_a_kind_of_file_is_found_in_folders(tmp_path, monkeypatch):
    entry = registry.SourceKind("raw", "nowhere:open", still=True, suffixes=frozenset({".dng"}))
    monkeypatch.setitem(registry.SOURCES, "raw", entry)
    for name in ("a.DNG", "b.jpg", "c.txt"):
        (tmp_path / name).write_bytes(b"x")
    sources, _ = find_sources([str(tmp_path)])
    assert [(source.path.name, source.kind) for source in sources] == [("a.DNG", "raw"), ("b.jpg", "image")]


def test_recognition_imports_no_decoder():
    code = (
        "import sys; from runtime.frames.find import find_sources\n"
        "assert len(find_sources(['-', '0', 'rtsp://x/y', 's_%d.png'])[0]) == 4\n"
        "heavy = {'cv2', 'numpy', 'av'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_entry_names_a_function():
    import importlib

    for kind in registry.SOURCES.values():
        for text in filter(None, (kind.opener, kind.settle)):
            module, _, name = text.partition(":")
            assert callable(getattr(importlib.import_module(module), name))


def test_a_photograph_is_a_clip_of_one_frame(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), draw(4))
    (source,), _ = find_sources([str(tmp_path / "a.png")])
    assert registry.SOURCES[source.kind].still
    (frame,) = frames_of(source)
    assert (frame.time, frame.number) == (0, 0) and np.array_equal(frame.image, draw(4))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_a_picture_on_standard_input(suffix):
    encoded = cv2.imencode(suffix, draw(2, (300, 400)))[1].tobytes()
    with standard_input(encoded):
        (source,) = settle_sources([stdin_source()])
    assert (source.kind, source.name, str(source.target)) == ("image", "stdin", "stdin")
    expected = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(read_still(source), expected)
    assert np.array_equal(frames_of(source)[0].image, expected)


def test_a_picture_on_standard_input_that_is_cut_short():
    with standard_input(cv2.imencode(".png", draw(2))[1].tobytes()[:-30]):
        (source,) = settle_sources([stdin_source()])
    with pytest.raises(DiffSegError, match="stdin: the image is cut short"):
        read_still(source)


def test_with_a_size_standard_input_is_raw_whatever_it_looks_like():
    data = cv2.imencode(".png", draw(2))[1].tobytes()[:192].ljust(192, b"x")
    with standard_input(data):
        (source,) = settle_sources([stdin_source()], size=(8, 8))
        (frame,) = frames_of(source, size=(8, 8))
    assert source.kind == "stdin" and frame.image.tobytes() == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "-: standard input is empty; pipe in a picture, or raw frames with --size"),
        (
            b"raw frames without a size",
            "-: is not a picture of a known format; raw frames on standard input need --size",
        ),
    ],
)
def test_standard_input_without_a_size_is_bad_usage(data, message):
    with standard_input(data), pytest.raises(UsageError, match=message):
        settle_sources([stdin_source()])


def test_a_terminal_on_standard_input_is_bad_usage(monkeypatch):
    monkeypatch.setattr(os, "isatty", lambda descriptor: True)
    with pytest.raises(UsageError, match="found a terminal"):
        settle_sources([stdin_source()])


def test_sources_that_need_nothing_are_left_as_they_are():
    sources = [Source(Path("a.jpg"), Path("a")), Source(Path("b.mp4"), Path("b"), "video")]
    assert settle_sources(sources) == sources


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001)])
def test_frames_of_a_part_are_numbered_as_in_the_whole(tmp_path, suffix, rate):
    source = Source(write_clip(tmp_path / f"a.{suffix}", 100, rate=rate), Path("a"), "video")
    whole = {frame.time: frame.number for frame in frames_of(source)}
    assert list(whole.values()) == list(range(100))
    for start in (Fraction(1, 2), Fraction(2)):  # decoded from the beginning, and entered
        part = frames_of(source, start, start + 1)
        assert len(part) in (25, 29, 30) and all(whole[frame.time] == frame.number for frame in part)


def test_a_variable_rate_is_numbered_without_repeats(tmp_path):
    ticks = [0, 1000, 7001, 7002, 90000, 90500, 180000, 180001, 181000, 270000]
    source = Source(write_clip(tmp_path / "a.mp4", 10, ticks=ticks), Path("a"), "video")
    assert [frame.number for frame in frames_of(source)] == list(range(10))
    numbers = [frame.number for frame in frames_of(source, Fraction(2))]
    assert len(numbers) == 4 and numbers == sorted(set(numbers))


def test_a_picture_that_cannot_be_read_keeps_its_number(tmp_path):
    for number in (3, 4, 6):
        cv2.imwrite(str(tmp_path / f"s_{number}.png"), draw(number))
    (tmp_path / "s_5.png").write_bytes(b"damaged")
    found = frames_of(Source(tmp_path / "s_%d.png", Path("s"), "sequence"))
    assert [frame.number for frame in found] == [0, 1, 3]


def test_bad_usage_ends_a_command_line_with_status_2(capsys):
    import typer

    from runtime.terminal import one_line_errors

    for error, status in ((UsageError("-: need --size"), 2), (DiffSegError("damaged"), 1)):
        with pytest.raises(typer.Exit) as caught, one_line_errors():
            raise error
        assert caught.value.exit_code == status
    assert capsys.readouterr().err == "error: -: need --size\nerror: damaged\n"

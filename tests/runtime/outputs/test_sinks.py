"""Outputs keep times, sound and size, and are whole whatever happens."""

import errno
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from runtime.errors import DiffSegError
from runtime.files import is_own_output
from runtime.frames.container import ContainerClip
from runtime.outputs.archive import ArchiveSink
from runtime.outputs.draw import draw_overlay
from runtime.outputs.form import ClipForm
from runtime.outputs.labels import LabelFolder
from runtime.outputs.movie import VideoSink
from tests.runtime.clips import draw, read_clip, small_disk, write_clip

NTSC = Fraction(30000, 1001)


def encode(path, times, form, size=(48, 64)):
    sink = VideoSink(path, form)
    for number, moment in enumerate(times):
        sink.write(number, moment, draw(number, size))
    sink.close()
    return read_clip(path)


def test_a_constant_rate_is_exact(tmp_path):
    times, images = encode(tmp_path / "a.mp4", [n / NTSC for n in range(40)], ClipForm(NTSC, 1 / Fraction(30000)))
    assert times == [n / NTSC for n in range(40)]
    assert all(np.abs(image.astype(int) - draw(n)).mean() < 4 for n, image in enumerate(images))
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == NTSC and stream.frames == 40
        assert stream.duration * stream.time_base == 40 / NTSC
    assert cv2.VideoCapture(str(tmp_path / "a.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 40
    assert is_own_output(tmp_path / "a.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_variable_rate_is_exact(tmp_path):
    wanted = [Fraction(tick, 90000) for tick in (5000, 6000, 13001, 13002, 96000, 96500)]
    times, _ = encode(tmp_path / "a.mp4", wanted, ClipForm(Fraction(25), Fraction(1, 90000)))
    assert times == [moment - wanted[0] for moment in wanted]


@pytest.mark.parametrize("size", [(1, 1), (47, 63), (33, 16), (2, 300)])
def test_odd_sizes(tmp_path, size):
    sink = VideoSink(tmp_path / "b.mp4", ClipForm(Fraction(25), Fraction(1, 25)))
    picture = draw(3, (64, 400))[: size[0], : size[1]].copy()
    sink.write(0, Fraction(0), picture)
    sink.close()
    _, images = read_clip(tmp_path / "b.mp4")
    assert images[0].shape[:2] == tuple(side + side % 2 for side in size)
    assert np.abs(images[0][: size[0], : size[1]].astype(int) - picture).mean() < 12


def test_colours_are_what_they_were_at_any_size(tmp_path):
    """Which of the two ways of writing colours was used is said in the file."""
    picture = np.full((720, 1280, 3), (20, 60, 230), np.uint8)
    sink = VideoSink(tmp_path / "a.mp4", ClipForm(Fraction(25), Fraction(1, 25)))
    sink.write(0, Fraction(0), picture)
    sink.close()
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (int(frame.colorspace), int(frame.color_range)) == (6, 1)
        assert np.abs(frame.to_ndarray(format="bgr24").astype(int) - picture).max() < 6
    assert np.abs(cv2.VideoCapture(str(tmp_path / "a.mp4")).read()[1].astype(int) - picture).max() < 6


def sound(path):
    """Codec, and the tone's samples from the beginning of the pictures on."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        blocks = list(container.decode(stream))
        return stream.codec_context.name, np.concatenate([block.to_ndarray()[0] for block in blocks]).astype(float)


@pytest.mark.parametrize(("suffix", "codec", "copied"), [("mp4", "aac", True), ("mkv", "pcm_s16le", False)])
def test_sound_is_kept(tmp_path, suffix, codec, copied):
    source = write_clip(tmp_path / f"a.{suffix}", 50, audio=codec)
    form = ClipForm.of(ContainerClip(str(source), "a"))
    encode(tmp_path / "b.mp4", [Fraction(n, 25) for n in range(50)], form)
    name, samples = sound(tmp_path / "b.mp4")
    assert name == "aac" and abs(len(samples) - 2 * 44100) < 4096 and samples.std() > 0.1
    if copied:
        with av.open(str(source)) as one, av.open(str(tmp_path / "b.mp4")) as other:
            packets = [[bytes(p) for p in c.demux(c.streams.audio[0]) if p.size] for c in (one, other)]
        assert len(packets[1]) > 80 and packets[1] == packets[0][-len(packets[1]) :]


def test_sound_of_a_part_is_that_part(tmp_path):
    source = write_clip(tmp_path / "a.mp4", 100, audio="aac")
    form = ClipForm.of(ContainerClip(str(source), "a"))
    encode(tmp_path / "b.mp4", [Fraction(n, 25) for n in range(50, 75)], form)
    with av.open(str(source)) as one, av.open(str(tmp_path / "b.mp4")) as other:
        whole = {bytes(p): p.pts * p.time_base for p in one.demux(one.streams.audio[0]) if p.size}
        part = [(whole[bytes(p)], p.pts * p.time_base) for p in other.demux(other.streams.audio[0]) if p.size]
    assert 0.9 < part[-1][1] < 1.0 and len(part) > 40
    assert all(abs(before - after - 2) < Fraction(1, 1000) for before, after in part)


def test_a_full_disk_is_named_and_what_was_written_can_be_played(tmp_path):
    """Writing fails in the middle, and so does closing the file. A limit on files' size stands for the disk."""
    sink = VideoSink(tmp_path / "a.mp4", ClipForm(Fraction(4), Fraction(1, 4)))
    noise = np.random.default_rng(0)
    with small_disk(60_000):
        with pytest.raises(DiffSegError, match=r"a.mp4: cannot be written \(File too large\); \d+ frames"):
            for number in range(500):
                sink.write(number, Fraction(number, 4), noise.integers(0, 255, (48, 64, 3), dtype=np.uint8))
        sink.close()
    times, _ = read_clip(tmp_path / "a.mp4")
    assert (
        len(times) >= 4
        and times == [Fraction(number, 4) for number in range(len(times))]  # from the first on
        and is_own_output(tmp_path / "a.mp4")
        and [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    )


@pytest.mark.parametrize("kind", [VideoSink, ArchiveSink, LabelFolder])
def test_a_full_disk_is_named(tmp_path, monkeypatch, kind):
    """What the system says of a full disk, at the first thing that is written."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*arguments, **options):
        raise full

    monkeypatch.setattr(av, "open", refuse)
    monkeypatch.setattr("runtime.outputs.archive.zipfile.ZipFile.writestr", refuse)
    monkeypatch.setattr("runtime.outputs.png.write_atomically", refuse)
    path = tmp_path / "a"
    sink = kind(path, ClipForm(Fraction(4), Fraction(1, 4))) if kind is VideoSink else kind(path)
    with pytest.raises(DiffSegError, match=r"a(/000000.png)?: .*(disk is full|No space left).*--output"):
        sink.write(0, Fraction(0), sink.prepare(draw(0), np.zeros((48, 64), np.int32)))


def test_archive(tmp_path):
    sink = ArchiveSink(tmp_path / "deep" / "a.npz")
    labels = [np.full((5, 7), number, np.uint8 if number < 2 else np.uint16) for number in range(3)]
    for number, image in enumerate(labels):
        sink.write(number, Fraction(number, 30), image)
    sink.close()
    with np.load(tmp_path / "deep" / "a.npz") as archive:
        assert archive.files == ["000000", "000001", "000002", "times"]
        assert all(np.array_equal(archive[f"{number:06d}"], image) for number, image in enumerate(labels))
        assert np.allclose(archive["times"], [0, 1 / 30, 2 / 30])
    assert is_own_output(tmp_path / "deep" / "a.npz")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.npz"]


def test_pictures_of_a_longer_run_before_are_removed_and_others_are_not(tmp_path):
    for count in (5, 3):
        sink = LabelFolder(tmp_path / "labels")
        for number in range(count):
            picture = sink.prepare(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.int32))
            sink.write(number, Fraction(number), picture)
        (tmp_path / "labels" / "notes.txt").write_text("mine")
        cv2.imwrite(str(tmp_path / "labels" / "000009.png"), np.zeros((2, 2), np.uint8))
        sink.close()
    names = sorted(path.name for path in (tmp_path / "labels").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png", "000009.png", "notes.txt"]


def test_a_sink_that_got_nothing_leaves_nothing(tmp_path):
    for sink in (VideoSink(tmp_path / "a.mp4", ClipForm(Fraction(1), Fraction(1))), ArchiveSink(tmp_path / "a.npz")):
        sink.close()
    assert not list(tmp_path.iterdir())


def test_colours_follow_identities():
    """The same number has the same colour, whichever others are in sight."""
    frame = np.full((20, 40, 3), 128, np.uint8)
    few, many = np.zeros((20, 40), np.int32), np.zeros((20, 40), np.int32)
    few[:, 20:] = 7
    many[:, :10], many[:, 20:] = 300, 7
    pictures = [draw_overlay(frame, labels) for labels in (few, many)]
    assert np.array_equal(pictures[0][5, 30], pictures[1][5, 30])
    assert not np.array_equal(pictures[1][5, 5], pictures[1][5, 15])


def warned(path, times, form):
    """What is warned of while a video of these times is written, and the times that are read from it."""
    lines = []
    sink = VideoSink(path, form, lines.append)
    for number, moment in enumerate(times):
        sink.write(number, moment, draw(number))
    sink.close()
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    return lines, read_clip(path)[0]


# In a process of its own: FFmpeg would end it. Average rate, tick, times.
ENDED_THE_PROCESS = {
    "a frame of 68 years": "F(1, 2**31 - 1), F(1, 90000), [0]",
    "frames of 68 years": "F(1, 2**31 - 1), F(1, 90000), [0, F(1, 25), F(2, 25)]",
    "frames of an hour, by the microsecond": "F(1, 3600), F(1, 10**6), [0, 1, 2]",
    "a gap of 42 h": "F(25), F(1, 1000), [0] + [150000 + F(i, 25) for i in range(5)]",
    "a gap of 25 min, by the microsecond": "F(25), F(1, 10**6), [0] + [1500 + F(i, 25) for i in range(5)]",
    "many gaps": "F(25), F(1, 90000), [F(24120) * 2**i for i in range(50)]",
    "pairs": "F(25), F(1, 10**6), [3000 * (i // 2) + F(i, 25) for i in range(90)]",
    "a tick of days": "F(1, 10**6), F(10**6), [10**6 * i for i in range(5)]",
    "the finest tick": "F(10**9), F(1, 2**31 - 1), [F(i, 2**31 - 1) for i in range(5)]",
}


QUICK = ("a gap of 42 h", "many gaps", "the finest tick")


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, form in ENDED_THE_PROCESS.items()
    ],
)
def test_no_rate_and_no_gap_ends_the_process(tmp_path, form):
    program = f"""
import pathlib
from fractions import Fraction as F
from runtime.outputs.form import ClipForm
from runtime.outputs.movie import VideoSink
from tests.runtime.clips import draw, read_clip
rate, tick, times = {form}
sink = VideoSink(pathlib.Path("a.mp4"), ClipForm(rate, tick))
for number, time in enumerate(times):
    sink.write(number, F(time), draw(number))
sink.close()
found = read_clip("a.mp4")[0]
assert len(found) == len(times) and sorted(set(found)) == found, found
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_pause_longer_than_the_format_holds_is_shortened_with_a_warning(tmp_path):
    lines, times = warned(
        tmp_path / "a.mp4", [Fraction(0), Fraction(24120), Fraction(24121)], ClipForm(Fraction(25), Fraction(1, 90000))
    )
    assert len(lines) == 1 and "a pause of 24120 s is shortened to 2983 s" in lines[0]
    assert len(times) == 3 and times[2] - times[1] == 1 and 2982 < times[1] < 2983


def test_what_was_encoded_is_kept_when_the_encoder_fails(tmp_path):
    sink = VideoSink(tmp_path / "a.mp4", ClipForm(Fraction(25), Fraction(1, 25)))
    for number in range(300):
        sink.write(number, Fraction(number, 25), draw(number))
    with pytest.raises(DiffSegError, match=r"a\.mp4: cannot be written .*; 300 frames were done"):
        sink.write(300, Fraction(12), draw(300).astype(np.uint8)[..., :1])
    sink.close()
    assert len(read_clip(tmp_path / "a.mp4")[0]) == 300
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("suffix", "codec", "kept"),
    [("avi", "libmp3lame", "mp3"), ("mkv", "eac3", "aac"), ("ts", "eac3", "aac"), ("mkv", "ac3", "ac3")],
)
def test_sound_of_any_codec_is_kept(tmp_path, suffix, codec, kept):
    source = write_clip(tmp_path / f"in.{suffix}", 50, audio=codec, codec="mpeg4" if suffix == "avi" else "libx264")
    form = ClipForm.of(ContainerClip(str(source), "a"))
    (tmp_path / "out").mkdir()
    lines, times = warned(tmp_path / "out" / "b.mp4", [Fraction(n, 25) for n in range(50)], form)
    with av.open(str(tmp_path / "out" / "b.mp4")) as container:
        stream = container.streams.audio[0]
        seconds = sum(block.samples for block in container.decode(stream)) / stream.rate
        assert stream.codec_context.codec.canonical_name == kept
    assert lines == [] and len(times) == 50 and abs(seconds - 2) < 0.2


def test_damaged_sound_never_costs_a_picture(tmp_path):
    """Transport streams whose packets of sound, one or all from some point on, are overwritten."""
    source = write_clip(tmp_path / "in.ts", 50, audio="aac")
    whole = source.read_bytes()
    with av.open(str(source)) as container:
        sound = container.streams.audio[0].id
    found = [at for at in range(0, len(whole), 188) if int.from_bytes(whole[at + 1 : at + 3], "big") & 0x1FFF == sound]
    for number, chosen in enumerate([found[-3:-2], found[len(found) // 2 :], found[:1]]):
        data = bytearray(whole)
        for at in chosen:
            data[at + 18 : at + 180] = bytes(range(1, 163))
        source.write_bytes(data)
        form = ClipForm.of(ContainerClip(str(source), "a"))
        (tmp_path / str(number)).mkdir()
        _, times = warned(tmp_path / str(number) / "b.mp4", [Fraction(n, 25) for n in range(50)], form)
        assert len(times) == 50


@pytest.mark.parametrize(("codec", "hertz"), [("libmp3lame", 8000), ("libmp3lame", 11025), ("pcm_s16le", 11111)])
def test_sound_that_the_format_refuses_never_costs_the_movie(tmp_path, codec, hertz):
    """MP3 of few samples a second cannot be copied, and AAC knows few rates: without its head the movie was lost."""
    source = write_clip(tmp_path / "in.avi", 25, audio=codec, codec="mpeg4", hertz=hertz)
    form = ClipForm.of(ContainerClip(str(source), "a"))
    (tmp_path / "out").mkdir()
    lines, times = warned(tmp_path / "out" / "b.mp4", [Fraction(n, 25) for n in range(25)], form)
    with av.open(str(tmp_path / "out" / "b.mp4")) as container:
        stream = container.streams.audio[0]
        seconds = sum(block.samples for block in container.decode(stream)) / stream.rate
        assert stream.codec_context.name == "aac" and stream.rate == (hertz if hertz != 11111 else 48000)
    assert lines == [] and len(times) == 25 and abs(seconds - 1) < 0.3


@pytest.mark.parametrize(("damage", "kept"), [(slice(5, 6), "ac3"), (slice(0, 1), "ac3"), (slice(None), "aac")])
def test_damaged_ac3_never_costs_a_picture(tmp_path, damage, kept):
    """The .mp4 fails of a packet that is none of AC-3, and where there is none."""
    source = write_clip(tmp_path / "in.mkv", 50, audio="ac3")
    data = bytearray(source.read_bytes())
    found = [match.start() for match in re.finditer(b"\x0b\x77...[\x40-\x47]", data, re.DOTALL)]
    for at in found[damage]:
        data[at : at + 6] = b"damage"
    source.write_bytes(data)
    form = ClipForm.of(ContainerClip(str(source), "a"))
    (tmp_path / "out").mkdir()
    lines, times = warned(tmp_path / "out" / "b.mp4", [Fraction(n, 25) for n in range(50)], form)
    assert len(found) > 50 and len(times) == 50 and len(lines) == 1 and "left out of the sound: damaged" in lines[0]
    with av.open(str(tmp_path / "out" / "b.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == kept


def test_an_error_of_the_sound_is_a_warning(tmp_path, monkeypatch):
    """Whatever fails in it, at every packet."""
    source = write_clip(tmp_path / "in.mp4", 25, audio="aac")
    form = ClipForm.of(ContainerClip(str(source), "a"))
    (tmp_path / "out").mkdir()

    def refuse(self, moment, item):
        raise av.error.InvalidDataError(1, "Invalid data")

    monkeypatch.setattr("runtime.outputs.audio.AudioCopy._write", refuse)
    lines, times = warned(tmp_path / "out" / "b.mp4", [Fraction(n, 25) for n in range(25)], form)
    assert len(times) == 25 and len(lines) == 1 and "left out of the sound" in lines[0]


def test_frames_that_the_encoder_does_not_take(tmp_path):
    form = ClipForm(Fraction(25), Fraction(1, 12800))
    sink = VideoSink(tmp_path / "wide.mp4", form)
    if sink._codec != "libx264":
        pytest.skip("needs x264")
    with pytest.raises(DiffSegError, match=r"no frames of 16386x16 pixels \(x264: sides of up to 16384\); make"):
        sink.write(0, Fraction(0), np.zeros((16, 16386, 3), np.uint8))
    sink.close()
    assert not list(tmp_path.iterdir())

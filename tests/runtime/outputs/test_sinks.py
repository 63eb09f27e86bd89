"""Outputs keep times, sound and size, and are whole whatever happens."""

import errno
import os
import signal
from fractions import Fraction

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
from tests.runtime.clips import draw, read_clip, write_clip

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
    import resource

    sink = VideoSink(tmp_path / "a.mp4", ClipForm(Fraction(4), Fraction(1, 4)))
    noise = np.random.default_rng(0)
    kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, kept[1][1]))
    try:
        with pytest.raises(DiffSegError, match=r"a.mp4: cannot be written \(File too large\); \d+ frames"):
            for number in range(500):
                sink.write(number, Fraction(number, 4), noise.integers(0, 255, (48, 64, 3), dtype=np.uint8))
        sink.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept[1])
        signal.signal(signal.SIGXFSZ, kept[0])
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

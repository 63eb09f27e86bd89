"""Frames at their exact times, upright, whatever the source; what is lost is told."""

import itertools
import os
import threading
import time
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import DiffSegError, UsageError
from runtime.frames.capture import CaptureClip
from runtime.frames.clip import frames_between
from runtime.frames.find import find_sources
from runtime.frames.opening import open_clip
from runtime.frames.source import Source
from tests.runtime.clips import draw, write_clip

NTSC = Fraction(30000, 1001)


def read(source, start=Fraction(0), end=None, **options):
    """Times, frames, and what was lost."""
    clip = open_clip(source, start=start, **options)
    frames = list(frames_between(clip, start, end, threading.Event()))
    clip.close()
    return [frame.time for frame in frames], [frame.image for frame in frames], clip.lost


def video(path):
    return Source(Path(path), Path("x"), "video")


def like(image, number):
    """Whether a decoded frame is the drawn one, but for what compression costs."""
    return image.shape == draw(number).shape and np.abs(image.astype(int) - draw(number)).mean() < 8


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi"])
def test_exact_times_at_a_constant_rate(tmp_path, suffix):
    codec = "mpeg4" if suffix == "avi" else "libx264"  # its times cannot say in which order H.264 is shown
    times, images, lost = read(video(write_clip(tmp_path / f"a.{suffix}", 12, rate=NTSC, codec=codec)))
    # Matroska counts milliseconds; the others are exact.
    bound = Fraction(1, 1000) if suffix == "mkv" else 0
    assert all(abs(moment - number / NTSC) <= bound for number, moment in enumerate(times))
    assert len(images) == 12 and all(like(image, number) for number, image in enumerate(images)) and not lost


def test_exact_times_at_a_variable_rate(tmp_path):
    ticks = [0, 1000, 7001, 7002, 90000, 90500]
    times, _, lost = read(video(write_clip(tmp_path / "a.mp4", 6, ticks=ticks)))
    assert times == [Fraction(tick, 90000) for tick in ticks] and not lost


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_is_applied(tmp_path, turn):
    _, images, _ = read(video(write_clip(tmp_path / "a.mp4", 2, turn=turn)))
    upright = np.rot90(draw(0), turn // 90)
    assert images[0].shape == upright.shape and np.abs(images[0].astype(int) - upright).mean() < 4


def test_a_part_of_a_clip(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 100)
    times, images, lost = read(video(path), Fraction(2), Fraction(3))
    assert times == [Fraction(number, 25) for number in range(50, 75)] and not lost
    assert like(images[0], 50) and like(images[-1], 74)


def test_a_clip_that_is_cut_short_yields_what_is_there(tmp_path):
    whole = write_clip(tmp_path / "a.mkv", 100, size=(144, 192)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    times, _, lost = read(video(tmp_path / "cut.mkv"))
    assert 30 < len(times) < 80 and len(lost) == 1 and "cut short" in lost[0] and "of 4.0 s" in lost[0]


def test_a_damaged_clip_yields_what_can_be_read(tmp_path):
    blob = bytearray(write_clip(tmp_path / "a.mp4", 100, size=(144, 192)).read_bytes())
    middle = len(blob) // 2
    blob[middle : middle + 800] = np.random.default_rng(0).bytes(800)
    (tmp_path / "hole.mp4").write_bytes(blob)
    times, _, lost = read(video(tmp_path / "hole.mp4"))
    assert len(times) > 80 and len(lost) == 1 and "damaged" in lost[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"no video at all", "is not a video"), (None, "is a folder")],
    ids=["empty", "text", "folder"],
)
def test_what_is_no_video(tmp_path, content, words):
    path = tmp_path / "a.mp4"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(DiffSegError, match=words):
        read(video(path))


def test_sound_alone_is_no_video(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=44100, layout="mono")
        block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        block.sample_rate = 44100
        out.mux(stream.encode(block))
        out.mux(stream.encode(None))
    with pytest.raises(DiffSegError, match="has no video; it has audio"):
        read(video(tmp_path / "a.mp4"))


def test_opencv_reads_the_same_where_pyav_is_missing(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 12, rate=NTSC)
    clip = CaptureClip(str(path), "a.mp4")
    found = list(clip.read(threading.Event()))
    assert clip.rate == NTSC and len(found) == 12 and all(like(image, n) for n, (_, image) in enumerate(found))
    assert all(abs(moment - n / NTSC) < Fraction(1, 10000) for n, (moment, _) in enumerate(found))
    # The header of this format says how many there should be.
    (tmp_path / "cut.avi").write_bytes(write_clip(tmp_path / "b.avi", 60, codec="mpeg4").read_bytes()[:9000])
    cut = CaptureClip(str(tmp_path / "cut.avi"), "cut.avi")
    count = len(list(cut.read(threading.Event())))
    assert 0 < count < 60 and "cut short or damaged" in cut.lost[0]


def test_numbered_pictures(tmp_path):
    """Grey, with alpha, 16 bits, of another size, damaged: one clip of the first one's size."""
    grey = cv2.cvtColor(draw(1), cv2.COLOR_BGR2GRAY)
    images = {1: draw(1), 2: grey, 5: np.dstack([draw(5), grey]), 10: draw(10).astype(np.uint16) * 257}
    for number, image in images.items():
        cv2.imwrite(str(tmp_path / f"shot_{number}.png"), image)
    cv2.imwrite(str(tmp_path / "shot_11.png"), draw(0, (24, 32)))
    (tmp_path / "shot_7.png").write_bytes(b"damaged")
    cv2.imwrite(str(tmp_path / "other_3.png"), draw(0))
    source = Source(tmp_path / "shot_%d.png", Path("x"), "sequence")
    times, found, lost = read(source, rate=Fraction(10))
    assert times == [Fraction(n, 10) for n in (0, 1, 2, 4, 5)]  # the time of a damaged one passes
    assert {image.shape for image in found} == {(48, 64, 3)}
    assert np.array_equal(found[1][..., 0], grey) and np.array_equal(found[2], draw(5))
    assert np.array_equal(found[3], draw(10)) and len(lost) == 1 and "shot_7.png" in lost[0]
    with pytest.raises(DiffSegError, match="no picture of that name"):
        read(Source(tmp_path / "gone_%03d.png", Path("x"), "sequence"))


@pytest.mark.parametrize(
    ("suffix", "dtype", "tops", "whites"),
    [
        # 12-bit values; the scale of a dark picture is the clip's, and a larger value raises it for good.
        (".png", np.uint16, (0, 4000, 900, 200, 5000, 1000), (0, 4095, 4095, 4095, 16383, 16383)),
        (".tif", np.float32, (0, 0.8, 0.1, 0.02, 4.0, 0.5), (0, 1, 1, 1, 4, 4)),
    ],
)
def test_numbered_pictures_of_more_than_8_bits_keep_one_scale(tmp_path, caplog, suffix, dtype, tops, whites):
    """Brightness does not jump where a picture is darker than the one before."""
    ramp = np.linspace(0, 1, 48 * 64, dtype=np.float64).reshape(48, 64)
    for number, top in enumerate(tops):
        cv2.imwrite(str(tmp_path / f"{number}{suffix}"), np.dstack([ramp * top] * 3).astype(dtype))
    _, found, lost = read(Source(tmp_path / f"%d{suffix}", Path("x"), "sequence"))
    assert len(found) == len(tops) and not lost
    for image, top, white in zip(found, tops, whites, strict=True):
        assert np.abs(image[..., 1] - ramp * top / max(white, 1e-9) * 255).max() <= 1.01
    said = [message for message in caplog.messages if "read as" in message]
    assert len(said) == (2 if dtype == np.uint16 else 3)  # once for each scale, and for floats that are all black


def test_raw_frames_on_standard_input(monkeypatch):
    frames = [draw(number) for number in range(3)]
    reading, writing = os.pipe()
    kept = os.dup(0)
    try:
        os.dup2(reading, 0)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(b"".join(frame.tobytes() for frame in frames) + b"half")
        times, found, lost = read(Source(Path("-"), Path("x"), "stdin", "-"), size=(64, 48), rate=NTSC)
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reading)
    assert times == [n / NTSC for n in range(3)] and all(map(np.array_equal, frames, found))
    assert len(lost) == 1 and "cut short (4 of 9216 bytes)" in lost[0]
    with pytest.raises(UsageError, match="need --size"):
        open_clip(Source(Path("-"), Path("x"), "stdin", "-"))


class Camera(BaseHTTPRequestHandler):
    """A network camera that drops every connection after five frames."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in range(5):
            picture = cv2.imencode(".jpg", draw(number))[1].tobytes()
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture))
            self.wfile.write(picture + b"\r\n")
            time.sleep(0.02)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def camera():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/live"
    server.shutdown()
    server.server_close()


def test_a_stream_that_drops_is_opened_again(camera, monkeypatch):
    monkeypatch.setattr("runtime.frames.live.FIRST_WAIT", 0.05)
    source = Source(Path("x"), Path("x"), "stream", camera.replace("//", "//user:secret@"))
    times, images, lost = read(source)
    assert 4 <= len(times) <= 5 and "--reconnect" in lost[0] and images[0].shape == (48, 64, 3)
    said = []
    clip = open_clip(source, reconnect=True, say=said.append)
    stop = threading.Event()
    found = []
    for frame in frames_between(clip, Fraction(0), None, stop):
        found.append(frame)
        if len(found) >= 12:
            stop.set()
    assert clip.live and not clip.lost and len(said) >= 2 and "opening it again in" in said[0]
    assert "secret" not in "".join(said) and all(a.time < b.time for a, b in itertools.pairwise(found))


def test_a_stream_that_is_not_there():
    with pytest.raises(DiffSegError, match=r"http://127.0.0.1:9/x: cannot be opened \(.*refused"):
        open_clip(Source(Path("x"), Path("x"), "stream", "http://127.0.0.1:9/x"))


def test_a_camera_that_is_not_there():
    with pytest.raises(DiffSegError, match="camera 97: cannot be opened"):
        open_clip(Source(Path("97"), Path("x"), "camera", "97"))


def test_what_an_input_stands_for(tmp_path, monkeypatch):
    """A number, a URL, a pattern and a dash, unless a file is called so; outputs have names without secrets."""
    monkeypatch.chdir(tmp_path)
    for name in ("7", "clip.MOV", "talk.ts", "a.jpg", "take_%d.png"):
        (tmp_path / name).write_bytes(b"x")
    url = "rtsp://user:secret@host:554/live/one.sdp"
    inputs = ["0", url, "shots/s_%04d.png", "-", "7", "clip.MOV", "talk.ts", "take_%d.png", "a.jpg", "0"]
    sources, failures = find_sources(inputs)
    assert not failures
    assert [(source.kind, str(source.target)) for source in sources] == [
        ("camera", "camera0"),
        ("stream", "host_554_live_one"),
        ("sequence", "s"),
        ("stdin", "stdin"),
        ("image", "7"),
        ("video", "clip"),
        ("video", "talk"),
        ("image", "take_%d"),
        ("image", "a"),
    ]
    assert sources[1].name == "rtsp://user:***@host:554/live/one.sdp" and sources[1].address == url
    found, _ = find_sources(["."])
    assert sorted(source.path.name for source in found) == ["a.jpg", "clip.MOV", "take_%d.png"]

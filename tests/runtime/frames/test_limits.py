"""Pictures and frames that declare more pixels than are allowed are refused before they are decoded."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from threading import Event

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from runtime.errors import DiffSegError, UsageError
from runtime.frames import limits
from runtime.frames.capture import CaptureClip
from runtime.frames.container import ContainerClip
from runtime.frames.decode import decode_frame, read_frame
from runtime.frames.limits import MOST_PIXELS, check_pixels, set_most_pixels
from runtime.frames.raw import open_stdin
from runtime.frames.source import OpenOptions, Source
from runtime.segment import app
from tests.runtime.clips import write_clip

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def at_most():
    """Sets a limit for one test."""
    yield set_most_pixels
    set_most_pixels()


def bomb(width, height):
    """A PNG of a few kilobytes that declares a size and holds one byte of it."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_the_default_admits_200_megapixels():
    check_pixels(16384 * 12288, "photo.jpg")
    with pytest.raises(DiffSegError, match=r"at most 256 million pixels, found 400 million; .*--max-"):
        decode_frame(bomb(20_000, 20_000), "bomb.png")


def test_a_file_of_too_many_bytes_is_not_read(tmp_path, at_most):
    at_most(1000)
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(70 << 20)
    with pytest.raises(DiffSegError, match=r"sparse.png: expected a picture of at most 67.* MB, found more; .*--max-"):
        read_frame(path)


PROGRAM = """
import resource, sys
from runtime.frames.limits import set_most_pixels
set_most_pixels(1_000_000)
from runtime.errors import DiffSegError
from runtime.frames.decode import read_frame
from pathlib import Path
import cv2
read_frame(Path("small.png"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        read_frame(Path(name))
        print(name, "was decoded")
    except DiffSegError as error:
        print("refused" if "expected at most 1 million pixels" in str(error) else error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_large_pictures_of_any_format_take_no_memory(tmp_path):
    """OpenCV knows the limit of all its decoders, if it is set before OpenCV is loaded: in a process of its own."""
    large = np.zeros((5000, 5000, 3), np.uint8)  # 75 MB
    names = [f"large.{suffix}" for suffix in ("png", "jpg", "webp", "jp2", "ppm", "tif", "bmp", "gif")]
    for name in names:
        assert cv2.imwrite(str(tmp_path / name), large)
    cv2.imwrite(str(tmp_path / "small.png"), large[:50, :50])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    *said, kilobytes = ran.stdout.splitlines()
    assert (said, ran.stderr) == (["refused"] * len(names), "")
    # An uncompressed file of 75 MB is read before it is looked at. To decode it takes as much again, and more.
    assert int(kilobytes) < 100_000


@pytest.mark.parametrize("suffix", ["webp", "tif", "bmp", "ppm", "gif"])
def test_the_limit_holds_before_decoding_also_where_opencv_is_loaded(at_most, suffix):
    at_most(3000)
    data = cv2.imencode(f".{suffix}", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    with pytest.raises(DiffSegError, match=r"at most 0.003 million pixels, found more;"):  # OpenCV says so
        decode_frame(data, "a")


def test_clips_of_large_frames_and_frames_that_grow(at_most, tmp_path):
    """By the header; and where a stream's later frames are larger than its header says, frame by frame."""
    path = tmp_path / "clip.mp4"
    write_clip(path, 3, (48, 64))
    at_most(48 * 64 - 1)
    for reader in (ContainerClip, CaptureClip):
        with pytest.raises(DiffSegError, match=r"clip.mp4: expected at most .* million pixels"):
            reader(str(path), "clip.mp4")
    pictures = [cv2.imencode(".jpg", np.zeros((side, side, 3), np.uint8))[1].tobytes() for side in (64, 640)]
    grows = tmp_path / "grows.mjpeg"
    grows.write_bytes(b"".join(pictures))
    at_most(100_000)
    clip = ContainerClip(str(grows), "grows.mjpeg")
    assert [frame.shape for _, frame in clip.read(Event())] == [(64, 64, 3)]
    assert clip.lost
    clip.close()


def test_raw_frames(at_most):
    source = Source(Path("-"), Path("stdin"), "stdin", "-")
    with pytest.raises(DiffSegError, match="--size 20000x20000: expected at most 256 million pixels"):
        open_stdin(source, OpenOptions(size=(20_000, 20_000)))


@pytest.mark.slow
def test_the_option(at_most, tmp_path):
    """The others finish; a limit that was raised holds for this run."""
    for name, side in (("small", 64), ("large", 400)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((side, side, 3), np.uint8))
    arguments = [str(tmp_path / "*.png"), "--output", str(tmp_path / "out"), "--save", "labels"]
    ran = CliRunner().invoke(app, [*arguments, "--max-pixels", "100000"])
    assert (ran.exit_code, ran.stderr.count("error: ")) == (1, 1)
    assert "large.png: expected at most 0.1 million pixels, found 0.16 million" in ran.stderr
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["small_labels.png"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    ran = CliRunner().invoke(app, [*arguments, "--max-pixels", "0"])
    assert (ran.exit_code, ran.stderr) == (2, "error: --max-pixels: expected a number from 1 to 1073741823, found 0\n")


@pytest.mark.parametrize("pixels", [0, -1, 1 << 30])
def test_the_limit_has_limits(at_most, pixels):
    with pytest.raises(UsageError, match="--max-pixels: expected a number from 1 to 1073741823"):
        at_most(pixels)
    assert limits.most_pixels() == MOST_PIXELS

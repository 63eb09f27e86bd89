"""Pictures of every depth and format become frames; what is changed or left out is said; threads do not disturb."""

import io
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from runtime.errors import DiffSegError
from runtime.frames.decode import Scale, _as_8_bits, decode_frame, read_frame
from runtime.frames.formats import HEAD, encoded_picture, is_animated
from tests.runtime.clips import draw

ROOT = Path(__file__).resolve().parents[3]
FRAME = draw(3)
ROWS = np.linspace(0, 1, 64, dtype=np.float32)[None, :, None] * np.float32([0.2, 0.6, 1]) * np.ones((48, 1, 1), "f4")


def encode(suffix, image, *options):
    return cv2.imencode(suffix, image, *options)[1].tobytes()


def with_pillow(form, *images, **options):
    file = io.BytesIO()
    first, *rest = map(PIL.Image.fromarray, images)
    first.save(file, form, **({"save_all": True, "append_images": rest} if rest else {}), **options)
    return file.getvalue()


@pytest.fixture
def decoded(caplog):
    """Decode, and give what was said of it, too."""

    def decode(data):
        caplog.clear()
        frame = decode_frame(data, "in/a.x")
        assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
        assert all(record.name == "diffseg" and record.levelname == "WARNING" for record in caplog.records)
        assert all(record.getMessage().startswith("in/a.x: ") for record in caplog.records)
        return frame, " ".join(record.getMessage() for record in caplog.records)

    return decode


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".ppm", ".webp", ".jpg", ".gif", ".avif", ".jp2"])
def test_eight_bits_without_a_word(decoded, suffix):
    frame, said = decoded(encode(suffix, FRAME))
    assert not said and np.abs(frame.astype(int) - FRAME).mean() < (20 if suffix == ".gif" else 8)
    if suffix in (".png", ".tif", ".bmp", ".ppm"):
        assert np.array_equal(frame, FRAME)


def test_grey_alpha_and_one_bit(decoded):
    grey = cv2.cvtColor(FRAME, cv2.COLOR_BGR2GRAY)
    for suffix in (".png", ".tif"):
        assert np.array_equal(decoded(encode(suffix, grey))[0], np.dstack([grey] * 3))
        assert np.array_equal(decoded(encode(suffix, np.dstack([FRAME, grey])))[0], FRAME)
    for form in ("PNG", "TIFF", "BMP"):
        frame, said = decoded(with_pillow(form, grey > 100))
        assert np.array_equal(frame[..., 0], np.where(grey > 100, 255, 0)) and not said


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm", ".pgm", ".jp2"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bits_are_scaled_by_what_is_there(decoded, suffix, bits):
    """A picture of 12 bits in 16 is as bright as the same one of 8 bits."""
    image = ROWS if suffix != ".pgm" else ROWS[..., 2]
    frame, said = decoded(encode(suffix, (image * (2**bits - 1)).astype(np.uint16)))
    expected = image * 255 if image.ndim == 3 else np.dstack([image * 255] * 3)
    assert np.abs(frame - expected).max() <= 1.01
    assert said == ("" if bits == 16 else f"in/a.x: its uint16 pixels reach only {2**bits - 1}; "
                    f"they are read as {bits}-bit values")  # fmt: skip


def test_sixteen_bits_with_alpha_and_dark_ones(decoded):
    image = np.dstack([ROWS, np.ones((48, 64), np.float32)])
    for suffix in (".png", ".tif"):
        # The alpha channel is opaque at 65535 and says nothing about the colours.
        values = (image * [3000, 3000, 3000, 65535]).astype(np.uint16)
        frame, said = decoded(encode(suffix, values))
        assert "12-bit" in said and np.array_equal(frame, values[..., :3] >> 4)
    assert decoded(encode(".png", np.zeros((4, 5), np.uint16)))[1] == ""
    # Half of the full range is a dark photograph, not another depth.
    frame, said = decoded(encode(".png", (ROWS * 30000).astype(np.uint16)))
    assert not said and frame.max() == 30000 >> 8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("top", [0.02, 0.3, 1, 255, 812.5, 65535])
def test_floats_are_read_by_their_range(decoded, dtype, top):
    frame, said = decoded(encode(".tif", (ROWS * top).astype(dtype)))
    white = 1 if 0.25 < top < 1 else top
    assert np.abs(frame - ROWS * (255 * top / white)).max() <= 0.51
    assert f"float pixels up to {top:.6g}; {white:.6g} is read as white" in said
    grey = decoded(encode(".tif", (ROWS[..., 2] * top).astype(dtype)))[0]
    assert np.abs(grey[..., 1] - ROWS[..., 2] * (255 * top / white)).max() <= 0.51


def test_a_webp_that_ends_in_its_head_is_no_animation():
    assert not is_animated(b"RIFF(\0\0\0WEBPVP8X\x1e")


def test_floats_are_scaled_a_part_at_a_time():
    """The whole of a picture of 256 megapixels needed 24 GB."""
    pixels = np.full((1 << 21, 3), 0.5, np.float32)
    tracemalloc.start()
    assert (_as_8_bits(pixels, "a.tif", Scale()) == 128).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_floats_that_are_no_colours(decoded):
    odd = ROWS.copy()
    odd[0, :4] = [[np.nan] * 3, [np.inf] * 3, [-np.inf] * 3, [-5] * 3]
    frame, _ = decoded(encode(".tif", odd))
    assert frame[0, :4, 0].tolist() == [0, 255, 0, 0] and np.abs(frame - ROWS * 255)[1:].max() <= 0.51
    with pytest.raises(DiffSegError, match=r"^b.tif: has float pixels, and none is a finite number"):
        decode_frame(encode(".tif", np.full((4, 4), np.nan, np.float32)), "b.tif")
    assert decoded(encode(".tif", np.zeros((4, 4), np.float32)))[0].max() == 0
    portable = encode(".pfm", ROWS)
    assert np.abs(decoded(portable)[0] - ROWS * 255).max() <= 0.51
    rgba = np.dstack([ROWS, np.ones((48, 64), np.float32)])
    assert np.abs(decoded(encode(".tif", rgba))[0] - ROWS * 255).max() <= 0.51


def test_integers_of_32_bits(decoded):
    frame, said = decoded(with_pillow("TIFF", (ROWS[..., 2] * 100_000).astype(np.int32)))
    assert "int32 pixels reach only 100000; they are read as 17-bit values" in said
    assert np.abs(frame - ROWS[..., 2:] * (100_000 >> 9)).max() <= 1.01


def test_radiance_keeps_its_white(decoded):
    """A picture of light, in which the sun is a thousand times brighter than paper, is cut off at white."""
    frame, said = decoded(encode(".hdr", ROWS * 10))
    assert not said and np.abs(frame - np.clip(ROWS * 2550, 0, 255)).max() < 12


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animation_gives_its_first_frame_and_says_so(decoded, form):
    images = [draw(number)[..., ::-1] for number in (0, 9, 18)]
    data = with_pillow(form, *images)
    frame, said = decoded(data)
    assert said == ("in/a.x: is an animation, and only its first frame is read; convert it to a video for all frames")
    assert np.abs(frame.astype(int) - draw(0)).mean() < 12
    assert not decoded(with_pillow(form, images[0]))[1]
    if form == "GIF":
        assert [is_animated(data[:end]) for end in (8, 20, len(data) // 3, len(data) - 1)] == [False] * 3 + [True]


def test_a_turned_picture_of_16_bits(decoded):
    """The orientation of EXIF counts for every depth."""
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    for values in (FRAME[..., ::-1], (ROWS[..., 2] * 4000).astype(np.uint16)):
        for form in ("PNG", "TIFF"):
            assert decoded(with_pillow(form, np.ascontiguousarray(values), exif=turned))[0].shape == (64, 48, 3)


def test_what_cannot_be_decoded(tmp_path):
    jpeg, png = encode(".jpg", FRAME), encode(".png", FRAME)
    for data in (jpeg[: len(jpeg) // 2], png[:-30]):
        with pytest.raises(DiffSegError, match=rf"^stdin: the image is cut short \({len(data)} bytes\)"):
            decode_frame(data, "stdin")
    for data in (b"text", b"", b"II*\x00" + bytes(40), b"RIFF"):
        with pytest.raises(DiffSegError, match=r"^stdin: (is not an image that OpenCV can read|cannot be decoded)"):
            decode_frame(data, "stdin")
    (tmp_path / "a.png").write_bytes(png)
    assert np.array_equal(read_frame(tmp_path / "a.png"), FRAME)
    with pytest.raises(DiffSegError, match="is a folder; expected an image"):
        read_frame(tmp_path)


def test_encoded_pictures_are_known_by_their_first_bytes():
    suffixes = (
        ".png",
        ".jpg",
        ".webp",
        ".tif",
        ".bmp",
        ".gif",
        ".avif",
        ".jp2",
        ".ppm",
        ".pgm",
        ".pbm",
        ".hdr",
        ".pfm",
    )
    for suffix in suffixes:
        image = FRAME if suffix not in (".hdr", ".pfm") else ROWS
        data = encode(suffix, image if suffix not in (".pbm", ".pgm") else image[..., 0])
        assert encoded_picture(data[:HEAD]) and not encoded_picture(data[:1]), suffix
    # Raw frames, wave sound, and other things that begin in a similar way.
    for head in (FRAME.tobytes(), bytes(HEAD), b"\xff" * HEAD, b"RIFF\0\0\0\0WAVE", b"BM" * 16, b"Paper", b"P6x", b""):
        assert not encoded_picture(head[:HEAD])


SCRIPT = """
import logging, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
import cv2, numpy as np
from runtime.errors import DiffSegError
from runtime.frames.decode import decode_frame

noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
jpeg, png = (bytearray(cv2.imencode(suffix, noise)[1].tobytes()) for suffix in (".jpg", ".png"))
jpeg[3000:3060] = bytes([255, 0xD5]) * 30
png[5000] ^= 255
tiff = cv2.imencode(".tif", noise)[1].tobytes()[:-200]
level = cv2.utils.logging.getLogLevel()

def work(number):
    for data in (jpeg, png, tiff):
        try:
            decode_frame(bytes(data), "x")
        except DiffSegError:
            pass
    sys.stderr.write(f"thread line {number}\\n")

before = os.fstat(2)
with ThreadPoolExecutor(8) as pool:
    done = pool.map(work, range(100))
    for number in range(300):
        os.write(2, f"main line {number}\\n".encode())
    os.system("echo from a subprocess >&2")
    list(done)
assert os.path.samestat(before, os.fstat(2)) and cv2.utils.logging.getLogLevel() == level
if sys.platform == "linux":
    import ctypes
    libc = ctypes.CDLL(None)
    stream = ctypes.c_void_p.in_dll(libc, "stderr")
    libc.fputs(b"from C afterwards\\n", stream); libc.fflush(stream)
"""


@pytest.mark.slow
def test_threads_that_decode_lose_nothing_of_what_others_print():
    """Damaged pictures make libjpeg, libpng and libtiff complain; only these complaints are missing."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    expected = [f"thread line {n}" for n in range(100)] + [f"main line {n}" for n in range(300)]
    expected += ["from a subprocess", *(["from C afterwards"] if sys.platform == "linux" else [])]
    assert sorted(lines) == sorted(expected)

"""PNG files keep every pixel, carry the mark, and are compressed by what they hold."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from skimage import data

from runtime.errors import DiffSegError
from runtime.files import is_own_output
from runtime.outputs.draw import draw_overlay, paint
from runtime.outputs.png import encode_png, write_encoded, write_png

PHOTO = np.ascontiguousarray(data.coffee()[..., ::-1])
LABELS = (cv2.GaussianBlur(PHOTO, (0, 0), 12)[..., 1] // 16).astype(np.int32)
PICTURES = {
    "labels": LABELS.astype(np.uint8),
    "labels of 16 bits": (LABELS * 301).astype(np.uint16),
    "colours": paint(LABELS),
    "overlay": draw_overlay(PHOTO, LABELS),
    "a pixel": np.full((1, 1), 7, np.uint8),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("flat", [None, False, True])
def test_every_pixel_is_kept_and_the_mark_is_there(tmp_path, name, flat):
    image, path = PICTURES[name], tmp_path / "deep" / "a.png"
    write_png(path, image, flat=flat)
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert found.dtype == image.dtype and np.array_equal(found, image) and is_own_output(path)
    write_encoded(path, encode_png(image))  # over our own picture, and encoded elsewhere
    assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), image)


def test_files_are_no_larger_than_by_default():
    for name, flat in (("labels", None), ("labels of 16 bits", None), ("colours", True)):
        assert len(encode_png(PICTURES[name], flat=flat)) < len(cv2.imencode(".png", PICTURES[name])[1]), name
    assert len(encode_png(PICTURES["overlay"])) < 1.1 * len(cv2.imencode(".png", PICTURES["overlay"])[1])


def test_threads_encode_the_same():
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(encode_png, [PICTURES["overlay"]] * 12))) == 1


def test_pictures_of_others_stay(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), PICTURES["labels"])
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(DiffSegError, match=r"a\.png: exists and is not this program's"):
        write_png(tmp_path / "a.png", PICTURES["overlay"])
    assert (tmp_path / "a.png").read_bytes() == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiffSegError, match=r"b\.png: cannot be written \(.+\); choose a folder"):
        write_png(tmp_path / "file" / "b.png", PICTURES["labels"])

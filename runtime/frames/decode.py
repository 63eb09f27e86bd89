"""Decoding a picture as a frame."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError
from runtime.frames.formats import is_animated, is_cut_short, pixels_of
from runtime.frames.limits import check_bytes, check_pixels
from runtime.frames.pixels import pixels_apart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Depths that sensors and files have. A 16-bit picture whose largest value is 3900 holds 12-bit values.
DEPTHS = (8, 10, 12, 14, 16)
PART = 1 << 20  # values that are scaled at a time


def check_file(path: Path, what: str) -> None:
    """Raise DiffSegError unless `path` is a file that can be read and is not empty. `what`: what was expected."""
    try:
        if not path.is_file():
            if not os.path.lexists(path):
                raise DiffSegError(f"{path}: no such file; expected {what}")
            kind = "a folder" if path.is_dir() else "no regular file" if path.exists() else "a broken link"
            raise DiffSegError(f"{path}: is {kind}; expected {what}")
        with path.open("rb") as file:
            if not file.read(1):
                raise DiffSegError(f"{path}: is empty; expected {what}")
    except OSError as error:
        raise DiffSegError(f"{path}: cannot be read ({error.strerror})") from None


class Scale:
    """How values of more than 8 bits are read, for all pictures of a clip: one scale for each type of pixels.

    The first picture that is not black sets it, so that brightness does not jump from picture to picture. It grows
    where a later picture has larger values.
    """

    def __init__(self) -> None:
        self._kept: dict[str, float] = {}

    def settle(self, dtype: str, found: float, black: bool) -> tuple[float, bool]:
        """The scale for a picture that would be read by `found` alone, and whether the clip has not had it before."""
        kept = self._kept.get(dtype)
        if kept is not None and (black or found <= kept):
            return kept, False
        if not black:
            self._kept[dtype] = found
        return found, True


def read_frame(path: Path, scale: Scale | None = None) -> NDArray[np.uint8]:
    """Read a picture file as a frame; see `decode_frame`.

    Raises DiffSegError also when the file cannot be read.
    """
    check_file(path, "an image")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            check_bytes(size, str(path))
            data = file.read(size)
    except OSError as error:
        raise DiffSegError(f"{path}: cannot be read ({error.strerror})") from None
    return decode_frame(data, str(path), scale)


def decode_frame(data: bytes, name: str, scale: Scale | None = None) -> NDArray[np.uint8]:
    """Decode a picture as a frame: uint8 [H, W, 3] BGR, EXIF rotation applied, alpha dropped.

    Values of more than 8 bits are scaled by the range they use; the logger "diffseg" warns of every such picture
    whose range is not the full one of its type, and of animations, whose first frame is taken. Safe in many threads.

        frame = decode_frame(Path("photo.jpg").read_bytes(), "photo.jpg")

    Args:
        data: the encoded picture, as a file has it.
        name: what messages call it.
        scale: of the clip that the picture is of; None for a picture by itself.

    Raises:
        DiffSegError: if OpenCV cannot decode it, or it is cut short, or its pixels are no picture or more than
            `runtime.frames.limits` allows.
    """
    check_pixels(pixels_of(data), name)
    if is_cut_short(data):
        raise DiffSegError(f"{name}: the image is cut short ({len(data)} bytes); copy or download it again")
    pixels = pixels_apart(data, name)
    if is_animated(data):
        _warn(name, "is an animation, and only its first frame is read; convert it to a video for all frames")
    return _as_bgr(_as_8_bits(pixels, name, scale or Scale()), name)


def _warn(name: str, text: str) -> None:
    logging.getLogger("diffseg").warning("%s: %s", name, text)


def _as_8_bits(pixels: NDArray[Any], name: str, scale: Scale) -> NDArray[np.uint8]:
    """Scale pixels of any type to uint8 by the range they use, and warn where it is not the type's full range."""
    import numpy as np

    if pixels.dtype == np.uint8:
        return pixels
    if np.issubdtype(pixels.dtype, np.floating):
        finite = np.isfinite(pixels)
        top = float(pixels.max(initial=0, where=finite))
        if not finite.any():
            raise DiffSegError(f"{name}: has float pixels, and none is a finite number; expected numbers from 0 to 1")
        # A picture of 0 to 1 need not reach 1, but below a quarter it would come out as nearly black.
        white = 1.0 if top == 0 or 0.25 <= top <= 1 else top
        white, new = scale.settle("float", white, top == 0)
        if new:
            _warn(name, f"has float pixels up to {top:.6g}; {white:.6g} is read as white, and 0 and less as black")

        def shown(rows: NDArray[Any]) -> NDArray[Any]:
            rows = np.where(np.isfinite(rows), rows, np.where(rows > 0, white, 0))
            return np.clip(rows * (255 / white), 0, 255).round()

        return _in_parts(pixels, shown)
    top = int(pixels.max(initial=0))
    found = next((depth for depth in DEPTHS if top < 1 << depth), top.bit_length())
    bits, new = scale.settle(str(pixels.dtype), found, top == 0)
    if new and top > 0 and bits < 8 * pixels.dtype.itemsize:
        _warn(name, f"its {pixels.dtype} pixels reach only {top}; they are read as {bits}-bit values")
    return _in_parts(pixels, lambda rows: np.maximum(rows, 0) >> (int(bits) - 8))


def _in_parts(pixels: NDArray[Any], work: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[np.uint8]:
    """What `work` gives for some rows at a time, as uint8: its numbers of all of them would take 100 bytes a pixel."""
    import numpy as np

    made = np.empty(pixels.shape, np.uint8)
    step = max(1, PART * len(pixels) // max(1, pixels.size))
    for row in range(0, len(pixels), step):
        made[row : row + step] = work(pixels[row : row + step])
    return made


def _as_bgr(pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Grey [H, W], grey with alpha, BGR or BGRA → BGR [H, W, 3]."""
    import cv2
    import numpy as np

    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 3:
        return pixels
    if channels > 4:
        raise DiffSegError(f"{name}: has {channels} channels; expected grey or colour, with or without alpha")
    if channels == 4:
        return np.ascontiguousarray(pixels[..., :3])
    return np.asarray(cv2.cvtColor(pixels if pixels.ndim == 2 else pixels[..., 0].copy(), cv2.COLOR_GRAY2BGR), np.uint8)

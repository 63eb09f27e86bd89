"""How many pixels a picture or a frame may have. A file of a few bytes can declare a size that fills the memory."""

from __future__ import annotations

import os
import sys

from runtime.errors import DiffSegError, UsageError

# Room for cameras of 200 megapixels. A frame of this size takes about 3 GB of memory, one of float pixels about 11 GB.
MOST_PIXELS = 256_000_000
LARGEST = (1 << 30) - 1  # OpenCV takes no more in any case
BYTES = 8  # of a picture's file for each of these pixels: four channels of 16 bits
MORE_BYTES = 64 << 20  # of its file in any case: metadata, previews
LARGE_FRAME = 16_000_000  # pixels from which frames of a clip are decoded one at a time: every thread holds several

_OPENCV = "OPENCV_IO_MAX_IMAGE_PIXELS"  # OpenCV reads it once, when it is loaded; it holds for all of its decoders

_most = MOST_PIXELS


def set_most_pixels(pixels: int = MOST_PIXELS) -> None:
    """Refuse pictures and frames of more pixels than this from now on, in the whole process.

    OpenCV's own decoders know the limit before they decode if OpenCV is loaded after this call. If it is loaded before,
    they know it of JPEG and PNG pictures only, and other pictures are refused after they were decoded.

    Raises:
        UsageError: if it is not from 1 to 2³⁰ − 1.
    """
    global _most
    if not 1 <= pixels <= LARGEST:
        raise UsageError(f"--max-pixels: expected a number from 1 to {LARGEST}, found {pixels}")
    _most = pixels
    if "cv2" not in sys.modules:
        os.environ[_OPENCV] = str(pixels)


def most_pixels() -> int:
    """The limit that holds now."""
    return _most


def most_bytes() -> int:
    """How many bytes the file of a picture may have, by the limit that holds now."""
    return MORE_BYTES + BYTES * _most


def check_bytes(size: int, name: str) -> None:
    """Raise DiffSegError if the file of a picture has more bytes than are allowed. `name`: what messages call it."""
    if size > most_bytes():
        raise DiffSegError(
            f"{name}: expected a picture of at most {most_bytes() / 1e6:.6g} MB, found more; make it smaller, or allow "
            "more with --max-pixels if you trust it"
        )


def check_pixels(pixels: int, name: str) -> None:
    """Raise DiffSegError if a picture or frame has more pixels than are allowed. `name`: what messages call it."""
    if pixels > _most:
        raise too_many_pixels(name, f"{pixels / 1e6:.3g} million")


def too_many_pixels(name: str, found: str = "more") -> DiffSegError:
    """The error for a picture or frame that is too large. `found`: its number of pixels."""
    return DiffSegError(
        f"{name}: expected at most {_most / 1e6:g} million pixels, found {found}; make it smaller, or allow more with "
        "--max-pixels if you trust it"
    )

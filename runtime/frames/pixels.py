"""From an encoded picture to its pixels as OpenCV gives them: of a large or unusual one in a child process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.children import pool
from runtime.errors import DiffSegError
from runtime.frames.formats import RADIANCE, TIFF, is_avif, is_laborious, pixels_of
from runtime.frames.limits import check_pixels, most_pixels, set_most_pixels, too_many_pixels
from runtime.frames.silence import decoders_silenced
from runtime.frames.source import known_formats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.children.channel import Channel

SMALL = 4_000_000  # pixels up to which a picture that says its size is decoded in this process
MEMORY = 24  # bytes a pixel: as OpenCV needs for a PNG of 16 bits, twice
TASK = "runtime.frames.pixels:serve_picture"


def pixels_apart(data: bytes, name: str) -> NDArray[Any]:
    """As `decode_pixels`. In a child process, unless the picture is a small JPEG or PNG that is quickly decoded.

    Of the other formats the size is not known before they are decoded, and their decoders are less well tried.
    Raises DiffSegError also when the child crashes, hangs or needs too much memory.
    """
    pixels = pixels_of(data)
    if 0 < pixels <= SMALL and not is_laborious(data, pixels):
        return decode_pixels(data, name)
    most = most_pixels()
    try:
        begun = pool.begin_task(
            TASK, name, most, pool.MEMORY + MEMORY * (pixels or most), before=np.frombuffer(data, np.uint8), most=most
        )
        if begun is None:
            return decode_pixels(data, name)
        child, found = begun
        try:
            picture = child.channel.view(found["done"]).copy()
        except (ValueError, TypeError, KeyError):
            child.close()
            raise pool.Ended("sent what is no picture") from None
    except pool.Ended as end:
        raise pool.harmful(name, "decoder", end) from None
    pool.give_back(child)
    return picture


def serve_picture(channel: Channel, name: str, array: dict[str, Any], most: int) -> dict[str, object]:
    """In the child: decode the picture in `array`. Returns where its pixels are."""
    set_most_pixels(most)
    return channel.put(decode_pixels(channel.view(array).tobytes(), name), 1)


def decode_pixels(data: bytes, name: str) -> NDArray[Any]:
    """A picture as OpenCV decodes it: [H, W] or [H, W, C] of any type. `name`: for messages.

    Raises DiffSegError when it cannot be decoded, or has more pixels than are allowed.
    """
    import cv2

    # OpenCV scales AVIF of any depth, and cuts radiance off at white. Of the others it keeps only the upper 8 bits.
    flags = cv2.IMREAD_COLOR
    if not is_avif(data) and not data.startswith(RADIANCE):
        flags |= cv2.IMREAD_ANYDEPTH
    encoded = np.frombuffer(data, np.uint8)
    try:
        with decoders_silenced():
            pixels: Any = cv2.imdecode(encoded, flags)
            if pixels is None and data.startswith(
                TIFF
            ):  # grey floats and 32-bit integers can only be decoded as they are
                pixels = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if "MAX_IMAGE" in str(error):
            raise too_many_pixels(name) from None
        raise DiffSegError(f"{name}: cannot be decoded ({error.err or error.msg})") from None
    if pixels is None:
        raise DiffSegError(
            f"{name}: is not an image that OpenCV can read, or is damaged or cut short; expected {known_formats()}"
        )
    check_pixels(pixels.shape[0] * pixels.shape[1], name)
    return pixels

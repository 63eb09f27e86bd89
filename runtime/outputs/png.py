"""Writing a PNG that is known as this program's own."""

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from runtime.errors import DiffSegError
from runtime.files import OWN_MARK, is_own_output, write_atomically

if TYPE_CHECKING:
    from numpy.typing import NDArray


def encode_png(image: "NDArray[np.uint8] | NDArray[np.uint16]") -> bytes:
    """A picture as the content of a PNG file that carries the program's mark."""
    _, encoded = cv2.imencode(".png", image)
    data = encoded.tobytes()
    header = 8 + 25  # signature and IHDR
    mark = len(OWN_MARK) - 4
    chunk = mark.to_bytes(4, "big") + OWN_MARK + zlib.crc32(OWN_MARK).to_bytes(4, "big")
    return data[:header] + chunk + data[header:]


def write_encoded(path: Path, data: bytes) -> None:
    """Write what `encode_png` gave, whole or not at all.

    Raises DiffSegError naming the path when it cannot be written, or a picture is there that is not ours.
    """
    if path.exists() and not is_own_output(path):
        raise DiffSegError(f"{path}: exists and is not this program's; move it away or choose another --output")
    try:
        write_atomically(path, data)
    except OSError as error:
        raise DiffSegError(
            f"{path}: cannot be written ({error.strerror or error}); choose a folder you may write to, with "
            "space, by --output"
        ) from None


def write_png(path: Path, image: "NDArray[np.uint8] | NDArray[np.uint16]") -> None:
    """`encode_png`, then `write_encoded`."""
    write_encoded(path, encode_png(image))

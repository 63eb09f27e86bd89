"""PNG files that carry this program's mark."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.files import OWN_MARK, refuse_foreign_file, write_atomically
from runtime.outputs.failures import explain

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Measured on 20 photographs of 481×321, processor milliseconds and bytes of a picture. OpenCV's default is RLE with the
# filter SUB. Deflate's other strategies take longer, and higher levels change little with these two.
#   labels, 8 bits         default 0.28, 3068    RLE UP 0.27, 1959    Huffman SUB 0.91,  20024
#   labels, 16 bits        default 0.65, 3660    RLE UP 0.66, 2992    Huffman SUB 1.96,  39654
#   colours alone          default 0.95, 5683    RLE UP 0.96, 5286    Huffman SUB 2.88,  60389
#   overlays               default 5.5, 246000   RLE UP 5.4, 259428   Huffman SUB 4.3,  248592   level 0: 0.5, 464387
_FLAT = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
)
_PHOTOGRAPH = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB),
)
_HEADER = 8 + 25  # bytes: the signature and IHDR, which the mark follows
_MARK = (len(OWN_MARK) - 4).to_bytes(4, "big") + OWN_MARK + zlib.crc32(OWN_MARK).to_bytes(4, "big")


def encode_png(image: NDArray[Any], *, flat: bool | None = None) -> bytes:
    """Encode uint8 or uint16 [H, W] or [H, W, 3] BGR as a PNG with the program's mark.

    `flat`: whether areas have one value each, as labels have and photographs have not; None: single channels are flat.
    It decides how the picture is compressed, and changes no pixel. Safe in many threads, which run at once.
    """
    flat = image.ndim == 2 if flat is None else flat
    _, encoded = cv2.imencode(".png", image, _FLAT if flat else _PHOTOGRAPH)
    data = np.ascontiguousarray(encoded).data
    return b"".join((data[:_HEADER], _MARK, data[_HEADER:]))


def write_encoded(path: Path, data: bytes) -> None:
    """Write what `encode_png` gave, whole or not at all.

    Raises DiffSegError naming the path when it cannot be written, or a picture is there that is not ours.
    """
    refuse_foreign_file(path)
    try:
        write_atomically(path, data)
    except OSError as error:
        raise explain(path, error) from None


def write_png(path: Path, image: NDArray[Any], *, flat: bool | None = None) -> None:
    """Call `encode_png`, then `write_encoded`."""
    write_encoded(path, encode_png(image, flat=flat))

"""Reading a picture file as a frame."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError
from runtime.frames.source import _known

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def check_file(path: Path, what: str) -> None:
    """Raise DiffSegError where `path` is no file that can be read, or is empty. `what`: what it should be."""
    try:
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "no regular file" if path.exists() else "a broken link"
            raise DiffSegError(f"{path}: is {kind}; expected {what}")
        with path.open("rb") as file:
            if not file.read(1):
                raise DiffSegError(f"{path}: is empty; expected {what}")
    except OSError as error:
        raise DiffSegError(f"{path}: cannot be read ({error.strerror})") from None


def read_frame(path: Path) -> "NDArray[np.uint8]":
    """Read an image as a frame: uint8 [H, W, 3] BGR, EXIF rotation applied, alpha dropped, 16 bits brought to 8.

    Raises DiffSegError when the file cannot be read, is no image OpenCV knows, or is cut short.
    """
    import cv2
    import numpy as np

    check_file(path, "an image")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DiffSegError(f"{path}: cannot be read ({error.strerror})") from None
    if is_cut_short(data):
        raise DiffSegError(f"{path}: the image is cut short ({len(data)} bytes); copy or download it again")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        with decoders_silenced():
            frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DiffSegError(f"{path}: cannot be decoded ({error.err or error.msg})") from None
    if frame is None:
        raise DiffSegError(
            f"{path}: is not an image that OpenCV can read, or is damaged or cut short; expected {_known()}"
        )
    if frame.dtype != np.uint8:
        raise DiffSegError(f"{path}: has {frame.dtype} pixels; expected 8 or 16 bits, convert it first")
    return np.asarray(frame if frame.ndim == 3 else cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR), np.uint8)


@contextmanager
def decoders_silenced() -> Iterator[None]:
    """libjpeg and libpng write their complaints to the process's stderr; people get one line, ours."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def is_cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG file ends before its image does. OpenCV would fill the missing part with grey."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" not in data[-64:] and b"IEND" not in data
    if not data.startswith(b"\xff\xd8"):
        return False
    position = 2
    # Segments before the scan carry their length; a thumbnail's own end marker hides inside one of them.
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        if data[position + 1] == 0xFF:  # padding
            position += 1
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return b"\xff\xd9" not in data[position:]

"""Sources: which images an INPUT stands for, where their outputs go, and reading them as frames."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "dib", "exr", "gif", "hdr", "jp2", "jpe", "jpeg", "jpg", "pbm", "pfm", "pgm", "png", "pnm"),
        *("ppm", "tif", "tiff", "webp"),
    )
)


@dataclass(frozen=True, slots=True)
class Source:
    """One image to segment. `path` is read; `target` is its outputs' path below the output folder, no suffix."""

    path: Path
    target: Path


def find_sources(inputs: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Expand files, folders (searched recursively) and globs into sources, each image once, in a stable order.

    Returns the sources and one message for every input that gives none. Pictures this program wrote are left out:
    they are never inputs. The folder structure below an input is kept; names that would collide keep their suffix,
    and where that is not enough their parent folders.
    """
    found: dict[Path, tuple[Path, Path]] = {}  # absolute path → as given, and below the input's folder
    failures: list[str] = []
    for text in inputs:
        paths, root, problem = _expand(text)
        failures += [problem] if problem else []
        for path in paths:
            absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
            found.setdefault(absolute, (path, absolute.relative_to(os.path.abspath(root))))  # noqa: PTH100
    return _place(found), failures


def _expand(text: str) -> tuple[list[Path], Path, str | None]:
    """The images of one input, the folder their outputs' paths are relative to, and what is wrong with it."""
    path = Path(text).expanduser()
    if path.is_dir():
        images = _images(path.rglob("*"))
        return images, path, None if images else f"{text}: no images in this folder; expected {_known()}"
    if path.exists():
        # Named outright, so read whatever its suffix says; only our own pictures stay out.
        return ([] if is_own_output(path) else [path]), path.parent, None
    if glob.has_magic(text):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        images = _images(matches)
        fixed = Path(*_before_magic(path.parts)) if path.parts else Path()
        return images, fixed, None if images else f"{text}: matches no images; expected {_known()}"
    return [], path, f"{text}: no such file or folder"


def _before_magic(parts: Sequence[str]) -> list[str]:
    fixed = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return fixed


def _images(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
        if not is_own_output(path)
    )


def _known() -> str:
    return " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))


def _place(found: dict[Path, tuple[Path, Path]]) -> list[Source]:
    """Choose every source's target so that no two share one (ignoring case, as some file systems do)."""
    anchors = {path.anchor for path in found}
    common = os.path.commonpath([path.parent for path in found]) if len(anchors) == 1 else None
    targets = {path: below.with_suffix("") for path, (_, below) in found.items()}
    with_suffix = {path: below for path, (_, below) in found.items()}
    with_parents = {path: path.relative_to(common or path.anchor) for path in found}
    for longer in (with_suffix, with_parents):
        uses = Counter(str(target).casefold() for target in targets.values())
        targets = {
            path: target if uses[str(target).casefold()] == 1 else longer[path] for path, target in targets.items()
        }
    return [Source(given, targets[path]) for path, (given, _) in found.items()]


def is_own_output(path: Path) -> bool:
    """Whether `path` is a PNG that this program wrote (`runtime.outputs` leaves a mark in the first bytes)."""
    from runtime.outputs import OWN_MARK

    if path.suffix.lower() != ".png":
        return False
    try:
        with path.open("rb") as file:
            return OWN_MARK in file.read(128)
    except OSError:
        return False


def read_frame(path: Path) -> "NDArray[np.uint8]":
    """Read an image as a frame: uint8 [H, W, 3] BGR, EXIF rotation applied, alpha dropped, 16 bits brought to 8.

    Raises DiffSegError when the file cannot be read, is no image OpenCV knows, or is cut short.
    """
    import cv2
    import numpy as np

    if path.is_dir():
        raise DiffSegError(f"{path}: is a folder; expected an image")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DiffSegError(f"{path}: cannot be read ({error.strerror})") from None
    if not data:
        raise DiffSegError(f"{path}: is empty; expected an image")
    if is_cut_short(data):
        raise DiffSegError(f"{path}: the image is cut short ({len(data)} bytes); copy or download it again")
    # Decoders print their own complaints on stderr; people get one line, ours.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DiffSegError(f"{path}: cannot be decoded ({error.err or error.msg})") from None
    if frame is None:
        raise DiffSegError(f"{path}: is not an image that OpenCV can read; expected {_known()}")
    return np.asarray(frame, np.uint8)


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

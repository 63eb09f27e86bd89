"""Sources: which images an INPUT stands for, where their outputs go, and reading them as frames."""

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError
from runtime.outputs import is_own_output

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

    Returns the sources and one message for every input, or folder within, that cannot be read or gives none. Pictures
    this program wrote are left out: they are never inputs. The folder structure below an input is kept; names that
    would collide keep their suffix, and where that is not enough their parent folders.
    """
    found: dict[Path, tuple[Path, Path]] = {}  # absolute path → as given, and below the input's folder
    failures: list[str] = []
    for text in inputs:
        try:
            paths, root, problems = _expand(text)
        except (OSError, RuntimeError, ValueError) as error:  # no permission, a loop, a name too long, no such user
            failures.append(f"{text}: cannot be read ({getattr(error, 'strerror', None) or error})")
            continue
        failures += problems
        for path in paths:
            absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
            found.setdefault(absolute, (path, absolute.relative_to(os.path.abspath(root))))  # noqa: PTH100
    return _place(found), failures


def _expand(text: str) -> tuple[list[Path], Path, list[str]]:
    """The images of one input, the folder their outputs' paths are relative to, and what is wrong with it."""
    if not text:
        return [], Path(), ["an empty INPUT; expected an image, a folder or a glob"]
    path = Path(text).expanduser()
    problems: list[str] = []
    if path.is_dir():
        found = (
            Path(folder, name)
            for folder, _, names in os.walk(path, onerror=lambda e: problems.append(_unreadable(e)))
            for name in names
        )
        images, ours = _images(found)
        root = path
    elif os.path.lexists(path):
        # Named outright, so read whatever its suffix says; only our own pictures stay out.
        return ([] if is_own_output(path) else [path]), path.parent, []
    elif glob.has_magic(text):
        images, ours = _images(Path(match) for match in glob.glob(str(path), recursive=True))
        root = Path(*_before_magic(path.parts)) if path.parts else Path()
    else:
        try:
            path.lstat()  # a name too long, or a folder that may not be entered, is another fault than absence
        except FileNotFoundError:
            return [], path, [f"{text}: no such file or folder"]
    if not images and not problems:
        reason = f"only pictures that this program wrote ({ours})" if ours else f"no images; expected {_known()}"
        problems = [f"{text}: {reason}"]
    return images, root, problems


def _unreadable(error: OSError) -> str:
    return f"{error.filename}: cannot be read ({error.strerror})"


def _before_magic(parts: Sequence[str]) -> list[str]:
    fixed = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return fixed


def _images(paths: Iterable[Path]) -> tuple[list[Path], int]:
    """The images among paths, sorted, and how many of our own pictures were left out."""
    images = sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and _may_be_file(path)
    )
    others = [path for path in images if not is_own_output(path)]
    return others, len(images) - len(others)


def _may_be_file(path: Path) -> bool:
    """Whether a name in a folder is a file, or may be one: reading it will tell why it cannot be read."""
    try:
        return path.is_file()
    except OSError:
        return True


def _known() -> str:
    return " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))


def _place(found: dict[Path, tuple[Path, Path]]) -> list[Source]:
    """Choose every source's target so that no two share one (ignoring case, as some file systems do)."""
    anchors = {path.anchor for path in found}
    common = os.path.commonpath([path.parent for path in found]) if len(anchors) == 1 else None
    targets = {path: below.with_suffix("") for path, (_, below) in found.items()}
    with_suffix = {path: below for path, (_, below) in found.items()}
    with_parents = {path: path.relative_to(common or path.anchor) for path in found}
    # The last step, a number for each, is for names that collide with what another's longer name has become.
    numbered = {path: Path(f"{with_parents[path]}.{number}") for number, path in enumerate(found, 1)}
    for longer in (with_suffix, with_parents, numbered):
        uses = Counter(str(target).casefold() for target in targets.values())
        targets = {
            path: target if uses[str(target).casefold()] == 1 else longer[path] for path, target in targets.items()
        }
    return [Source(given, targets[path]) for path, (given, _) in found.items()]


def read_frame(path: Path) -> "NDArray[np.uint8]":
    """Read an image as a frame: uint8 [H, W, 3] BGR, EXIF rotation applied, alpha dropped, 16 bits brought to 8.

    Raises DiffSegError when the file cannot be read, is no image OpenCV knows, or is cut short.
    """
    import cv2
    import numpy as np

    try:
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "no regular file" if path.exists() else "a broken link"
            raise DiffSegError(f"{path}: is {kind}; expected an image")
        data = path.read_bytes()
    except OSError as error:
        raise DiffSegError(f"{path}: cannot be read ({error.strerror})") from None
    if not data:
        raise DiffSegError(f"{path}: is empty; expected an image")
    if is_cut_short(data):
        raise DiffSegError(f"{path}: the image is cut short ({len(data)} bytes); copy or download it again")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        with _decoders_silenced():
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
def _decoders_silenced() -> Iterator[None]:
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

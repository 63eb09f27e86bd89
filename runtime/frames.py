"""Sources: which images and clips an INPUT stands for, where their outputs go, and reading images as frames."""

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, urlsplit

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
VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "flv", "h264", "hevc", "m2ts", "m4v", "mjpeg", "mjpg", "mkv", "mov", "mp4", "mpeg"),
        *("mpg", "mts", "mxf", "ogv", "vob", "webm", "wmv", "y4m"),
    )
)
NAMED_VIDEO_SUFFIXES = VIDEO_SUFFIXES | {".ts"}  # in a folder, .ts is more often a program than a broadcast

Kind = Literal["image", "video", "sequence", "stream", "camera", "stdin"]


@dataclass(frozen=True, slots=True)
class Source:
    """One image or clip to segment.

    `path` is read, for a sequence it is the pattern; `target` is its outputs' path below the output folder, no suffix;
    `address` stands for the path of what is no file: a URL, a camera's index, "-".
    """

    path: Path
    target: Path
    kind: Kind = "image"
    address: str = ""

    @property
    def name(self) -> str:
        """For people: the path, or the address without its password."""
        return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", self.address) if self.address else str(self.path)


def find_sources(inputs: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Expand files, folders (searched recursively) and globs into sources, each image once, in a stable order.

    Videos are found as images are. `-` is standard input, a number a camera, what has `://` a stream, and a name with
    a number's place, `shot_%04d.png`, a sequence of pictures: each where no file is called so.
    Returns the sources and one message for every input, or folder within, that cannot be read or gives none. What this
    program wrote is left out: it is never an input. The folder structure below an input is kept; names that
    would collide keep their suffix, and where that is not enough their parent folders.
    """
    found: dict[Path, tuple[Path, Path]] = {}  # absolute path → as given, and below the input's folder
    special: dict[Path, tuple[Kind, str]] = {}
    failures: list[str] = []
    for text in inputs:
        if (kind := _special(text)) is not None:
            # A path that no file has, so that all targets are chosen together.
            absolute = Path(os.path.abspath(text if kind == "sequence" else quote(text, safe="")))  # noqa: PTH100
            special[absolute] = (kind, "" if kind == "sequence" else text)
            found.setdefault(absolute, (Path(text), Path(_called(kind, text))))
            continue
        try:
            paths, root, problems = _expand(text)
        except (OSError, RuntimeError, ValueError) as error:  # no permission, a loop, a name too long, no such user
            failures.append(f"{text}: cannot be read ({getattr(error, 'strerror', None) or error})")
            continue
        failures += problems
        for path in paths:
            absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
            found.setdefault(absolute, (path, absolute.relative_to(os.path.abspath(root))))  # noqa: PTH100
    return [
        Source(given, target, *special.get(path, (_kind(path), "")))
        for (path, (given, _)), target in zip(found.items(), _place(found), strict=True)
    ], failures


def _special(text: str) -> Kind | None:
    """What an input stands for that is neither file, folder nor glob."""
    from runtime.video.sources import split_pattern

    if text == "-":
        return "stdin"
    try:
        if not text or os.path.lexists(text):
            return None
    except ValueError:  # a null byte
        return None
    if text.isascii() and text.isdigit() and len(text) < 4:
        return "camera"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return "stream"
    return "sequence" if split_pattern(Path(text).name) else None


def _called(kind: Kind, text: str) -> str:
    """The name of the outputs of what is no file, with a suffix (that may be left out)."""
    if kind == "sequence":
        stem = re.sub(r"%\d*d", "", Path(text).stem).strip("._- ")
        return f"{stem or Path(text).absolute().parent.name or 'sequence'}{Path(text).suffix}"
    if kind == "stream":
        parts = urlsplit(text)
        words = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
        return re.sub(r"[^A-Za-z0-9.]+", "_", words).strip("_.") or "stream"
    return "stdin" if kind == "stdin" else f"camera{int(text)}"


def _kind(path: Path) -> Kind:
    return "video" if path.suffix.lower() in NAMED_VIDEO_SUFFIXES else "image"


def _expand(text: str) -> tuple[list[Path], Path, list[str]]:
    """The images of one input, the folder their outputs' paths are relative to, and what is wrong with it."""
    if not text:
        return [], Path(), ["an empty INPUT; expected an image, a video, a folder or a glob"]
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
        reason = (
            f"only pictures that this program wrote ({ours})" if ours else f"no images or videos; expected {_known()}"
        )
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
    """The images and videos among paths, sorted, and how many of our own were left out."""
    images = sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
        and not path.name.startswith(".")
        and _may_be_file(path)
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


def _place(found: dict[Path, tuple[Path, Path]]) -> list[Path]:
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
    return [targets[path] for path in found]


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

"""Which images and clips an INPUT stands for, and where their outputs go."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from runtime.files import is_own_output
from runtime.frames.source import IMAGE_SUFFIXES, NAMED_VIDEO_SUFFIXES, VIDEO_SUFFIXES, Kind, Source, _known

if TYPE_CHECKING:
    pass


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
    from runtime.frames.pictures import split_pattern

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

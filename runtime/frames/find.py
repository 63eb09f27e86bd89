"""From INPUT to sources: the images and clips that are meant, and where their outputs go."""

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from runtime.files import is_own_output
from runtime.frames.registry import kind_of_file, kind_of_input, suffixes_in_folders
from runtime.frames.source import Source


def find_sources(inputs: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Expand files, folders (searched recursively) and globs into sources, each file once, in a stable order.

    `-` is standard input. If no file has that name, a number is a camera, a text with `://` a stream, and a name with
    a place for a number, `shot_%04d.png`, a sequence of pictures (`runtime.frames.registry`).
    Returns the sources, and one message for every input, or folder within, that cannot be read or holds no source.
    Outputs of this program are never inputs. Targets keep the folder structure below an input. Names that would collide
    keep their suffix; if that is not enough, their parent folders.
    """
    found: dict[Path, tuple[Path, Path]] = {}  # absolute path → path as given, and path below the input's folder
    special: dict[Path, tuple[str, str]] = {}  # absolute path → kind and address
    failures: list[str] = []
    for text in inputs:
        if (kind := kind_of_input(text)) is not None:
            # An address gets a path that no file has, so that the targets of all sources are chosen together.
            absolute = Path(os.path.abspath(text if kind.is_path else quote(text, safe="")))  # noqa: PTH100
            special[absolute] = (kind.name, "" if kind.is_path else text)
            found.setdefault(absolute, (Path(text), Path(kind.outputs(text))))
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
        Source(given, target, *special.get(path, (kind_of_file(path).name, "")))
        for (path, (given, _)), target in zip(found.items(), _place(found), strict=True)
    ], failures


def _expand(text: str) -> tuple[list[Path], Path, list[str]]:
    """The files of one input, the folder to which their outputs' paths are relative, and one message per problem."""
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
        files, ours = _readable(found)
        root = path
    elif os.path.lexists(path):
        # The user named the file itself, so it is read whatever its suffix, unless it is an output of ours.
        return ([] if is_own_output(path) else [path]), path.parent, []
    elif glob.has_magic(text):
        files, ours = _readable(_matches(path))
        root = Path(*_before_magic(path.parts)) if path.parts else Path()
    else:
        try:
            path.lstat()  # distinguishes absence from a name too long, or a folder that may not be entered
        except FileNotFoundError:
            return [], path, [f"{text}: no such file or folder"]
    if not files and not problems:
        known = " ".join(sorted(suffix[1:] for suffix in suffixes_in_folders()))
        found_none = f"no images or videos; expected names that end in {known}"
        reason = f"only pictures that this program wrote ({ours})" if ours else found_none
        problems = [f"{text}: {reason}"]
    return files, root, problems


def _matches(pattern: Path) -> Iterator[Path]:
    """What a glob matches. `**` enters every folder once, also where links lead round in a circle."""
    if "**" not in pattern.parts:
        yield from map(Path, glob.iglob(str(pattern)))
        return
    at = pattern.parts.index("**")
    below = Path(*itertools.dropwhile("**".__eq__, pattern.parts[at:]))
    for base in glob.glob(str(Path(*pattern.parts[:at]))):
        for folder in _folders(base):
            yield from _matches(Path(glob.escape(folder)) / below) if below.parts else _files(folder)


def _files(folder: str) -> Iterator[Path]:
    return (Path(match) for match in glob.iglob(str(Path(glob.escape(folder), "*"))))


def _folders(root: str) -> Iterator[str]:
    """A folder and all below it that are not hidden, each once: those that are reached by links last."""
    seen: set[tuple[int, int]] = set()
    waiting, links = [root], list[str]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                inside = sorted((e.name, e.path, e.is_symlink()) for e in entries if e.is_dir() and e.name[:1] != ".")
        except OSError:  # as glob does
            continue
        yield folder
        waiting += [path for _, path, link in reversed(inside) if not link]
        links += [path for _, path, link in inside if link]


def _unreadable(error: OSError) -> str:
    return f"{error.filename}: cannot be read ({error.strerror})"


def _before_magic(parts: Sequence[str]) -> list[str]:
    fixed = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return fixed


def _readable(paths: Iterable[Path]) -> tuple[list[Path], int]:
    """The files among paths that are of a known kind, sorted, and how many outputs of ours were left out."""
    suffixes = suffixes_in_folders()
    known = sorted(
        path
        for path in paths
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and _may_be_file(path)
    )
    others = [path for path in known if not is_own_output(path)]
    return others, len(known) - len(others)


def _may_be_file(path: Path) -> bool:
    """Whether a name in a folder is a file. True if that cannot be known: reading it reports why."""
    try:
        return path.is_file()
    except OSError:
        return True


def _place(found: dict[Path, tuple[Path, Path]]) -> list[Path]:
    """Choose every source's target so that no two are the same, also where a file system ignores case."""
    anchors = {path.anchor for path in found}
    common = os.path.commonpath([path.parent for path in found]) if len(anchors) == 1 else None
    targets = {path: below.with_suffix("") for path, (_, below) in found.items()}
    with_suffix = {path: below for path, (_, below) in found.items()}
    with_parents = {path: path.relative_to(common or path.anchor) for path in found}
    # A number for each, the last step, is for a name that collides with the longer name of another source.
    numbered = {path: Path(f"{with_parents[path]}.{number}") for number, path in enumerate(found, 1)}
    for longer in (with_suffix, with_parents, numbered):
        uses = Counter(str(target).casefold() for target in targets.values())
        targets = {
            path: target if uses[str(target).casefold()] == 1 else longer[path] for path, target in targets.items()
        }
    return [targets[path] for path in found]

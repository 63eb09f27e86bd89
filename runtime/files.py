"""Files: writing whole files or none, and recognising this program's own outputs."""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from runtime.errors import DiffSegError

# What reading JSON raises that is damaged, or of another form than expected.
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
MOST_TEXT = 16 << 20  # bytes of a sidecar; the largest that are written have some kilobytes
ABANDONED = 7 * 86400  # seconds without a change after which another machine's temporary file is nobody's
_PART = re.compile(r"\.([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{16}\.part")
_swept: set[str] = set()


def read_small_text(path: Path, *, most: int = MOST_TEXT) -> str:
    """The UTF-8 text of a regular file of at most `most` bytes.

    Raises DiffSegError when it cannot be read. Never waits, as for a FIFO, and reads no more than that.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DiffSegError(f"cannot read {path}: expected a regular file, found a folder, pipe or device")
            data = file.read(most + 1)
        if len(data) > most:
            raise DiffSegError(f"cannot read {path}: expected a text of at most {most} bytes, found more")
        return data.decode()
    except (OSError, ValueError) as error:
        raise DiffSegError(f"cannot read {path}: {error}") from None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def part_path(path: Path) -> Path:
    """A temporary name in the folder of `path`, which tells the process that writes there.

    At the first one in a folder, files are removed that runs left there which were killed.
    """
    folder = os.path.realpath(path.parent)
    if folder not in _swept:
        _swept.add(folder)
        sweep_parts(Path(folder))
    pid = os.getpid()
    return path.with_name(f".{_machine()}-{pid}-{_own_start(pid)}-{uuid.uuid4().hex[:16]}.part")


def sweep_parts(folder: Path) -> None:
    """Remove temporary files and folders whose process has ended, or that another machine has left for long."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _PART.fullmatch(entry.name)
            with contextlib.suppress(OSError):
                if not match or entry.is_symlink() or not _is_stale(match, entry.stat().st_mtime):
                    continue
                if entry.is_dir():
                    shutil.rmtree(entry.path)
                elif entry.is_file():
                    Path(entry.path).unlink()


def _is_stale(match: re.Match[str], changed: float) -> bool:
    machine, pid, started = match.groups()
    if machine != _machine() or sys.platform == "win32":  # where a signal of 0 would end the process
        return time.time() - changed > ABANDONED
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return started not in ("0", _started(int(pid)))  # another process has got its number


@cache
def _machine() -> str:
    """Eight digits for this machine since its start, and the container on it: where a process's number means it."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))  # noqa: PTH116
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:8]


@cache
def _own_start(pid: int) -> str:
    return _started(pid)


def _started(pid: int) -> str:
    """When a process began, in the system's ticks; 0 where that is unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError, ValueError):
        return "0"


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file or none: under a temporary name in the same folder, which is then renamed.

    Makes the folder. Raises OSError when the folder cannot be written or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(path)
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # the name that people know
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name, which is called `path` at the end of the block: a whole one or none.

    Makes the folders above it. Raises DiffSegError where something is at `path` that is no empty folder; OSError where
    it cannot be written.
    """
    try:
        if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
            raise DiffSegError(f"{path}: exists and is not an empty folder; move it away, or choose another place")
        above = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DiffSegError(f"{path}: a file is where a folder is expected; choose another place") from None
    part = part_path(path)
    try:
        part.mkdir()
        yield part
        if path.exists():
            path.rmdir()
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        for folder in above:  # the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


# A PNG text entry, by which a second run over the same folder recognises its outputs.
OWN_MARK = b"tEXtSoftware\x00diffseg"
# The same at the end of label archives, as the zip file's comment, and of videos, as a box that players skip.
OWN_ARCHIVE = b"diffseg"
OWN_BOX = (8 + len(OWN_ARCHIVE)).to_bytes(4, "big") + b"free" + OWN_ARCHIVE
# The first key of JSON files, and the end of lines in label texts, where readers ignore white space.
OWN_JSON = {"software": "diffseg"}
YOLO_END = "\t\n"
# What begins a file of ours, or what ends it.
_FIRST = {
    ".png": re.compile(b".*" + re.escape(OWN_MARK), re.DOTALL),
    **dict.fromkeys((".json", ".jsonl", ".geojson"), re.compile(rb'\{("info": ?\{)?"software": ?"diffseg"')),
}
_LAST = {
    ".mp4": re.compile(re.escape(OWN_BOX)),
    ".npz": re.compile(re.escape(OWN_ARCHIVE)),
    ".txt": re.compile(rb" \d\.\d{6}" + YOLO_END.encode()),
}
_BYTES = {".mp4": len(OWN_BOX), ".npz": len(OWN_ARCHIVE), ".txt": 11}


def is_own_output(path: Path) -> bool:
    """Whether this program wrote `path`, by the mark in it: a PNG, video, archive, JSON file or text of polygons."""
    suffix = path.suffix.lower()
    try:
        if suffix not in (*_FIRST, *_LAST) or not path.is_file():
            return False
        with path.open("rb") as file:
            if suffix in _FIRST:
                return bool(_FIRST[suffix].match(file.read(128)))
            file.seek(-min(_BYTES[suffix], path.stat().st_size), 2)
            return bool(_LAST[suffix].fullmatch(file.read()))
    except OSError:
        return False


def refuse_foreign_file(path: Path) -> None:
    """Raise DiffSegError when something is at `path` that this program did not write."""
    if path.exists() and not is_own_output(path):
        raise DiffSegError(f"{path}: exists and is not this program's; move it away or choose another --output")


def cache_folder() -> Path:
    """This program's folder in the user's cache: below XDG_CACHE_HOME or ~/.cache, LOCALAPPDATA on Windows."""
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    root = os.environ.get(variable)
    return (Path(root) if root else Path.home() / ".cache") / "diffseg"

"""Files: writing whole files or none, and recognising this program's own outputs."""

import os
import sys
import uuid
from pathlib import Path

from runtime.errors import DiffSegError


def read_text(path: Path) -> str:
    """The file's UTF-8 text. Raises DiffSegError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DiffSegError(f"cannot read {path}: {error}") from None


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file or none: under a temporary name in the same folder, which is then renamed.

    Makes the folder. Raises OSError when the folder cannot be written or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


# A PNG text entry, by which a second run over the same folder recognises its outputs.
OWN_MARK = b"tEXtSoftware\x00diffseg"
# The same at the end of label archives, as the zip file's comment, and of videos, as a box that players skip.
OWN_ARCHIVE = b"diffseg"
OWN_BOX = (8 + len(OWN_ARCHIVE)).to_bytes(4, "big") + b"free" + OWN_ARCHIVE
_LAST = {".mp4": OWN_BOX, ".npz": OWN_ARCHIVE}


def is_own_output(path: Path) -> bool:
    """Whether `path` is a PNG, a video or an archive that this program wrote, by the mark in it."""
    suffix = path.suffix.lower()
    try:
        if suffix not in (".png", *_LAST) or not path.is_file():
            return False
        with path.open("rb") as file:
            if suffix == ".png":
                return OWN_MARK in file.read(128)
            file.seek(-min(len(_LAST[suffix]), path.stat().st_size), 2)
            return file.read() == _LAST[suffix]
    except OSError:
        return False


def cache_folder() -> Path:
    """This program's folder in the user's cache: below XDG_CACHE_HOME or ~/.cache, LOCALAPPDATA on Windows."""
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    root = os.environ.get(variable)
    return (Path(root) if root else Path.home() / ".cache") / "diffseg"

"""Why an output could not be written, in words."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError, NoMoreSpace

if TYPE_CHECKING:
    from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)


def explain(path: Path, error: Any, kept: str = "") -> DiffSegError:
    """What writing to `path` failed of, with an error of the system or of FFmpeg; `kept`: what there is of it.

    A `NoMoreSpace` where no other file could be written either.
    """
    number = getattr(error, "errno", None)
    what = "the disk is full" if number in _FULL else f"cannot be written ({getattr(error, 'strerror', None) or error})"
    kind = NoMoreSpace if number in (*_FULL, errno.EROFS) else DiffSegError
    kept = f"{kept}; " if kept else ""
    return kind(f"{path}: {what}; {kept}choose a folder you may write to, with space, by --output")

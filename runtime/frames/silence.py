"""Decoders that print nothing."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

SILENT = 0  # OpenCV's LOG_LEVEL_SILENT


class _Silence:
    """How many threads decode now, and what C's stderr and OpenCV's log level were before the first of them."""

    lock = threading.Lock()
    threads = 0
    stream: int | None = None
    level = 0


@contextmanager
def decoders_silenced() -> Iterator[None]:
    """Keep the complaints of libjpeg, libpng and OpenCV from the terminal: people get one line, which is ours.

    The C libraries print to the variable `stderr` of the C library, which points elsewhere meanwhile. The file
    descriptor stays, so that nothing is lost of what Python, its other threads and its subprocesses print. May be
    entered by many threads at once; the last one that leaves puts everything back.
    """
    import cv2

    opencv: Any = getattr(cv2.utils, "logging", cv2)  # from OpenCV 5 on in a module of its own

    with _Silence.lock:
        if not _Silence.threads:
            _Silence.level = opencv.getLogLevel()
            opencv.setLogLevel(SILENT)
            _Silence.stream = _point_stderr_to(_null_stream())
        _Silence.threads += 1
    try:
        yield
    finally:
        with _Silence.lock:
            _Silence.threads -= 1
            if not _Silence.threads:
                _point_stderr_to(_Silence.stream)
                opencv.setLogLevel(_Silence.level)


@cache
def _c_stderr() -> ctypes.c_void_p | None:
    """The C library's variable `stderr`; None where it cannot be changed, as in musl and on Windows."""
    try:
        name = "__stderrp" if sys.platform == "darwin" else "stderr" if os.confstr("CS_GNU_LIBC_VERSION") else None
        return None if name is None else ctypes.c_void_p.in_dll(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError, ValueError):
        return None


@cache
def _null_stream() -> int | None:
    """A FILE* that swallows what is written to it."""
    if _c_stderr() is None:
        return None
    fopen = ctypes.CDLL(None).fopen
    fopen.restype = ctypes.c_void_p
    stream: int | None = fopen(os.devnull.encode(), b"w")
    return stream


def _point_stderr_to(stream: int | None) -> int | None:
    """Returns the FILE* that C's stderr was before; None where nothing was changed."""
    variable = _c_stderr()
    if variable is None or stream is None:
        return None
    before, variable.value = variable.value, stream
    return before

"""Compiled models of OpenVINO, kept in files that are used only if they are whole.

OpenVINO's own cache believes what it reads: a damaged file gives other numbers. Here every file begins with the hash of
what follows.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import time
from pathlib import Path
from typing import Any

import openvino as ov

from runtime.engine.external import external_data
from runtime.errors import DiffSegError
from runtime.files import cache_folder, write_atomically

CACHED_DAYS = 30  # a compiled model that has not been used for so long is deleted
# Bytes of the largest engine that is cached. A compiled model contains the weights: for Stable Diffusion that takes
# 3.4 GB of disk and 2 GB more memory, and loads no faster than compiling.
LARGEST_CACHED = 1e9
HASH = 32  # bytes
FORM = 1  # raise it when what is done to a graph before it is compiled changes


def compiled_folder() -> Path:
    """The folder of compiled models in the user's cache."""
    return cache_folder() / "openvino"


def compile_or_load(
    core: ov.Core, model: ov.Model, path: Path, options: dict[str, Any], folder: Path | None, size: int
) -> ov.CompiledModel:
    """The compiled model of an engine, from its file in `folder` if that is whole, and otherwise compiled anew.

    `path`: the ONNX file. `size`: bytes of its weights. Raises what OpenVINO raises when it cannot compile.
    """
    if folder is None or not _usable(folder, size):
        return core.compile_model(model, "CPU", options)
    file = folder / f"{_key(core, path, options)}.blob"
    with contextlib.suppress(OSError, RuntimeError):  # OpenVINO's errors are RuntimeErrors
        data = memoryview(file.read_bytes())
        if hashlib.sha256(data[HASH:]).digest() == data[:HASH]:
            os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))  # that it was used
            return core.import_model(io.BytesIO(data[HASH:]), "CPU", options)
    compiled = core.compile_model(model, "CPU", options)
    with contextlib.suppress(DiffSegError, OSError, RuntimeError):
        made = compiled.export_model().getbuffer()
        write_atomically(file, hashlib.sha256(made).digest() + made)
    return compiled


def _key(core: ov.Core, path: Path, options: dict[str, Any]) -> str:
    """A name for an engine's content, OpenVINO's version, the CPU and the options."""
    found = hashlib.sha256(path.read_bytes())
    for name in external_data(path):  # too large to be read twice
        with contextlib.suppress(OSError):
            status = (path.parent / name).stat()
            found.update(repr((str(path.resolve()), name, status.st_size, status.st_mtime_ns)).encode())
    cpu = core.get_property("CPU", "FULL_DEVICE_NAME")
    found.update(repr((FORM, ov.__version__, cpu, sorted(options.items()))).encode())
    return found.hexdigest()[:HASH]


def _usable(folder: Path, size: int) -> bool:
    """Whether the cache can take `size` bytes. Makes its folder and deletes what has not been used for long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - CACHED_DAYS * 86400
        for blob in folder.glob("*.blob"):
            with contextlib.suppress(OSError):  # another process may have deleted it first
                if max(blob.stat().st_atime, blob.stat().st_mtime) < oldest:
                    blob.unlink()
    except OSError:
        return False
    return size <= LARGEST_CACHED and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 4 * size

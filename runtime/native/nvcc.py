"""What a CUDA compiler can build for: the architectures that it knows, and the drivers that run what it makes."""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import DiffSegError

# The first driver of each major version of CUDA. A program runs with all drivers of its own major version, and later.
FIRST_DRIVER = {11: "450", 12: "525", 13: "580"}


def release(nvcc: Path) -> tuple[int, int] | None:
    """The CUDA version of a compiler, (13, 0); None where it does not say."""
    found = re.search(r"release (\d+)\.(\d+)", _said(nvcc, "--version"))
    return (int(found[1]), int(found[2])) if found else None


def known_architectures(nvcc: Path) -> list[int]:
    """The compute capabilities that a compiler builds for, as numbers in order; empty where it does not say."""
    return sorted({int(number) for number in re.findall(r"sm_(\d+)\b", _said(nvcc, "--list-gpu-code"))})


def check_driver_version(nvcc: Path, driver: tuple[int, int] | None) -> None:
    """Raise DiffSegError where a driver cannot run what a compiler builds: minutes of building would end in no kernel.

    `driver`: the CUDA version that it runs, (12, 4); None where that is not known.
    """
    built = release(nvcc)
    if built is None or driver is None or built[0] <= driver[0]:
        return
    newer = f" to {FIRST_DRIVER[built[0]]} or newer" if built[0] in FIRST_DRIVER else ""
    raise DiffSegError(
        f"{nvcc} builds for drivers of CUDA {built[0]}, found one of CUDA {driver[0]}.{driver[1]}; update the NVIDIA "
        f"driver{newer}, or put the nvcc of a CUDA {driver[0]} toolkit first on PATH"
    )


def choose_architectures(nvcc: Path, wanted: Sequence[int]) -> tuple[list[int], list[int]]:
    """Of the wanted architectures those that the compiler builds code for, and those of the intermediate code it adds.

    GPUs that are newer than the compiler get intermediate code of the newest it knows, which their driver compiles.
    Raises DiffSegError where the compiler knows none of them and nothing older.
    """
    known = known_architectures(nvcc)
    code = sorted(number for number in wanted if not known or number in known)
    if len(code) < len(set(wanted)):
        left = sorted(set(wanted) - set(code))
        logging.getLogger("diffseg").info("%s knows no architecture %s", nvcc, ", ".join(map(str, left)))
    if code:
        return code, code[-2:]
    older = [number for number in known if number < min(wanted)]
    if not older:
        raise DiffSegError(
            f"{nvcc} builds for the architectures {', '.join(map(str, known))}, found --arch "
            f"{','.join(map(str, wanted))}; choose one of them, or install another CUDA toolkit"
        )
    return [], older[-1:]


def _said(nvcc: Path, option: str) -> str:
    try:
        return subprocess.run([str(nvcc), option], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""

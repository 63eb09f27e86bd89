"""Finds the native library, or builds it: with nvcc for GPUs, with a C++ compiler for tests on a CPU."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import DiffSegError
from runtime.files import cache_folder

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "diffseg.cu"
NAME = {"linux": "libdiffseg.so", "darwin": "libdiffseg.dylib", "win32": "diffseg.dll"}.get(
    sys.platform, "libdiffseg.so"
)
LIBRARY, BESIDE = "DIFFSEG_LIBRARY", "beside"  # environment variable, and its value for an engine's folder
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 120)  # as in CMakeLists.txt
STRICT = ("-Wall", "-Wextra", "-Werror")


def sources() -> list[Path]:
    """The source files of the library."""
    return sorted(path for path in HERE.rglob("*") if path.suffix in (".cu", ".cuh", ".h"))


def source_hash() -> str:
    """Twelve hexadecimal digits that change with the sources."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.relative_to(HERE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def cached_library(architectures: Sequence[int], cpu: bool = False) -> Path:
    """The path in the user's cache for a library of these sources and architectures."""
    kind = f"cpu-{platform.machine()}" if cpu else "sm" + "-".join(map(str, sorted(architectures)))
    return cache_folder() / f"{source_hash()}-{kind}" / NAME


def find_library(engine: Path | None = None, architecture: int | None = None) -> Path | None:
    """An existing library: the one that DIFFSEG_LIBRARY names, in the package, or in the cache; None if there is none.

    Loading a library runs its code. So the one beside an engine counts only where DIFFSEG_LIBRARY is "beside"; a
    warning says that it is there. Raises DiffSegError where DIFFSEG_LIBRARY names no file.
    """
    beside = None if engine is None else Path(engine).resolve().parent / NAME
    asked = os.environ.get(LIBRARY)
    if asked and asked != BESIDE:
        if not Path(asked).is_file():
            raise DiffSegError(f"{LIBRARY}: expected a library of the merge core or {BESIDE!r}, found {asked!r}")
        return Path(asked)
    places = [HERE / NAME]
    if beside is not None and beside.is_file():
        if asked == BESIDE:
            return beside
        logging.getLogger("diffseg").warning(
            "%s is not loaded, for that would run its code; %s=%s does it", beside, LIBRARY, BESIDE
        )
    if architecture is not None:
        places.append(cached_library([architecture]))
    places.append(cached_library(ARCHITECTURES))
    return next((place for place in places if place.is_file()), None)


def find_nvcc() -> Path:
    """Path of nvcc: on PATH, below CUDA_HOME or CUDA_PATH, or in the package nvidia-cuda-nvcc.

    Raises DiffSegError when there is none.
    """
    found = shutil.which("nvcc")
    if found:
        return Path(found)
    program = "nvcc.exe" if sys.platform == "win32" else "nvcc"
    places = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        places += sorted(Path(root).glob("*/bin"))
    for place in places:
        if (place / program).is_file():
            return place / program
    raise DiffSegError(
        "no CUDA compiler: nvcc is not on PATH, not below CUDA_HOME, and the package nvidia-cuda-nvcc is not "
        "installed; 'pip install nvidia-cuda-nvcc nvidia-cuda-cccl' or install the CUDA toolkit, or name a library "
        f"that was built elsewhere with 'python -m runtime.native build' in the environment variable {LIBRARY}"
    )


def build_library(target: Path, architectures: Sequence[int] = ARCHITECTURES) -> Path:
    """Build the library for GPUs into the file `target`. Raises DiffSegError with the compiler's messages."""
    nvcc = find_nvcc()
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    # Intermediate code of the newest two, which the driver compiles for GPUs that are not in the list.
    code += [f"-gencode=arch=compute_{a},code=compute_{a}" for a in sorted(architectures)[-2:]]
    command = [str(nvcc), "-std=c++17", "-O3", "--shared", "-cudart=static", *code, "-Werror", "all-warnings"]
    # The wheels have their libraries where nvcc does not search.
    libraries = nvcc.parent.parent / "lib"
    if (libraries / "libcudart_static.a").is_file():
        command.append(f"-L{libraries}")
    if sys.platform != "win32":
        command += ["-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror"]
    return _compile([*command, "-DDIFFSEG_BUILDING", "-DDIFFSEG_SHARED", str(SOURCE)], target)


def build_cpu_library(target: Path, flags: Sequence[str] = ()) -> Path:
    """Build the library for the CPU into the file `target`: for tests, examples and CI, not for speed.

    `flags`: further ones for the compiler. Raises DiffSegError with the compiler's messages.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if not compiler:
        raise DiffSegError("no C++ compiler: neither g++ nor clang++ is on PATH; install one, or name it in CXX")
    command = [compiler, "-x", "c++", "-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", *STRICT]
    # It is built where it runs: on x86 the processor's vector units make it four times as fast.
    native = ["-march=native"] if platform.machine() in ("x86_64", "AMD64") else []
    return _compile([*command, *native, "-pthread", "-DDIFFSEG_CPU", *flags, str(SOURCE)], target)


def _compile(command: list[str], target: Path) -> Path:
    """Run a compiler. The target is written whole or not at all."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder, target.name)
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise DiffSegError(f"{Path(command[0]).name} failed:\n{(done.stderr or done.stdout)[-3000:]}")
            made.replace(target)
    except OSError as error:
        raise DiffSegError(
            f"{target}: cannot be built ({error}); choose a folder you may write to with 'python -m runtime.native "
            "build --output DIR', or the cache's with XDG_CACHE_HOME"
        ) from None
    return target

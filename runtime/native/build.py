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
from runtime.native.nvcc import check_driver_version, choose_architectures

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "diffseg.cu"
NAME = {"linux": "libdiffseg.so", "darwin": "libdiffseg.dylib", "win32": "diffseg.dll"}.get(
    sys.platform, "libdiffseg.so"
)
LIBRARY, BESIDE = "DIFFSEG_LIBRARY", "beside"  # environment variable, and its value for an engine's folder
TOOLKIT = Path("/usr/local/cuda/bin")  # JetPack's and most installers', and often not on PATH
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 120)  # as in CMakeLists.txt
WARNINGS = ("-Wall", "-Wextra")
STRICT = (*WARNINGS, "-Werror")


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
    """The library that DIFFSEG_LIBRARY names, that is in the package, or in the cache; None if no library exists.

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


def check_beside(path: Path, built: str, engine: Path | None, architecture: int) -> None:
    """Raise DiffSegError where the library in an engine's folder is of other sources, or has no code for the GPU.

    `built`: as the library says it, the hash of its sources and its architectures: "0123456789ab_sm87_ptx87".
    """
    if engine is None or path.parent != Path(engine).resolve().parent:
        return
    found, *kinds = built.split("_")
    if found != source_hash():
        wrong = f"is built from other sources: expected {source_hash()}, found {found or 'none named'}"
    elif kinds and not any(_runs(kind, architecture) for kind in kinds):
        wrong = f"has no code for a GPU of architecture {architecture}, found {', '.join(kinds)}"
    else:
        return
    raise DiffSegError(
        f"{path} {wrong}; build it again with 'python -m runtime.native build --arch {architecture} --output "
        f"{path.parent}', or unset {LIBRARY}"
    )


def _runs(kind: str, architecture: int) -> bool:
    """Whether a GPU runs code: of its own major version and not newer, or intermediate code that is not newer."""
    name, number = kind[:2], int(kind.lstrip("smptx"))
    return number <= architecture and (name != "sm" or number // 10 == architecture // 10)


def find_nvcc() -> Path:
    """Path of nvcc: on PATH, below CUDA_HOME or CUDA_PATH, where the toolkit is installed, or in nvidia-cuda-nvcc.

    Raises DiffSegError when there is none.
    """
    found = shutil.which("nvcc")
    if found:
        return Path(found)
    program = "nvcc.exe" if sys.platform == "win32" else "nvcc"
    places = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places.append(TOOLKIT)
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        places += sorted(Path(root).glob("*/bin"))
    for place in places:
        if (place / program).is_file():
            return place / program
    raise DiffSegError(
        f"no CUDA compiler: nvcc is not on PATH, not below CUDA_HOME, not in {TOOLKIT}, and the package "
        "nvidia-cuda-nvcc is not installed; 'pip install nvidia-cuda-nvcc nvidia-cuda-cccl' or install the CUDA "
        "toolkit, or name a library that was built elsewhere with 'python -m runtime.native build' in the environment "
        f"variable {LIBRARY}"
    )


def build_for_gpu(architecture: int, driver: tuple[int, int] | None) -> Path:
    """Build the library for a GPU of this machine, into the cache.

    `driver`: the version of CUDA that its driver runs. Raises DiffSegError where it cannot run what the compiler makes,
    or with the compiler's messages.
    """
    check_driver_version(find_nvcc(), driver)
    return build_library(cached_library([architecture]), [architecture])


def build_library(target: Path, architectures: Sequence[int] = ARCHITECTURES, strict: bool = False) -> Path:
    """Build the library for GPUs into the file `target`, for those of the architectures that the compiler knows.

    `strict`: warnings are errors, as for tests; not for users, whose compilers may be newer. Raises DiffSegError
    with the compiler's messages.
    """
    nvcc = find_nvcc()
    code, intermediate = choose_architectures(nvcc, architectures)
    built = "_".join([source_hash(), *(f"sm{a}" for a in code), *(f"ptx{a}" for a in intermediate)])
    command = [str(nvcc), "-std=c++17", "-O3", "--shared", "-cudart=static", f"-DDIFFSEG_BUILT={built}"]
    command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in code]
    command += [f"-gencode=arch=compute_{a},code=compute_{a}" for a in intermediate]
    command += ["-Werror", "all-warnings"] if strict else []
    # The wheels have their libraries where nvcc does not search.
    libraries = nvcc.parent.parent / "lib"
    if (libraries / "libcudart_static.a").is_file():
        command.append(f"-L{libraries}")
    if sys.platform != "win32":
        command += ["-Xcompiler=" + ",".join(("-fPIC", "-fvisibility=hidden", *(STRICT if strict else WARNINGS)))]
    return _compile([*command, "-DDIFFSEG_BUILDING", "-DDIFFSEG_SHARED", str(SOURCE)], target)


def build_cpu_library(target: Path, flags: Sequence[str] = ()) -> Path:
    """Build the library for the CPU into the file `target`: for tests, examples and CI, not for speed.

    `flags`: further ones for the compiler. Raises DiffSegError with the compiler's messages.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if not compiler:
        raise DiffSegError("no C++ compiler: neither g++ nor clang++ is on PATH; install one, or name it in CXX")
    command = [compiler, "-x", "c++", "-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", *WARNINGS]
    command.append(f"-DDIFFSEG_BUILT={source_hash()}")
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

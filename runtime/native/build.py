"""Find the native library, or build it: with nvcc for GPUs, with a C++ compiler for the CPU that stands in for one."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from runtime.errors import DiffSegError

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "diffseg.cu"
NAME = {"linux": "libdiffseg.so", "darwin": "libdiffseg.dylib", "win32": "diffseg.dll"}.get(
    sys.platform, "libdiffseg.so"
)
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 120)  # as in CMakeLists.txt
STRICT = ("-Wall", "-Wextra", "-Werror")


def sources() -> list[Path]:
    """Every file the library is made of."""
    return sorted(path for path in HERE.rglob("*") if path.suffix in (".cu", ".cuh", ".h"))


def source_hash() -> str:
    """Twelve digits that change with the sources."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.relative_to(HERE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def cache_folder() -> Path:
    """The user's cache: XDG_CACHE_HOME or ~/.cache, LOCALAPPDATA on Windows."""
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    root = os.environ.get(variable)
    return (Path(root) if root else Path.home() / ".cache") / "diffseg"


def cached_library(architectures: Sequence[int], cpu: bool = False) -> Path:
    """Where the cache keeps the library of these sources, for these architectures."""
    kind = f"cpu-{platform.machine()}" if cpu else "sm" + "-".join(map(str, sorted(architectures)))
    return cache_folder() / f"{source_hash()}-{kind}" / NAME


def find_library(engine: Path | None = None, architecture: int | None = None) -> Path | None:
    """A library that is already there: beside the engine, in the package, in the cache; None if there is none."""
    places = [HERE / NAME]
    if engine is not None:
        places.insert(0, Path(engine).resolve().parent / NAME)
    if architecture is not None:
        places.append(cached_library([architecture]))
    places.append(cached_library(ARCHITECTURES))
    return next((place for place in places if place.is_file()), None)


def open_driver() -> ctypes.CDLL:
    """NVIDIA's driver library. Raises OSError where there is none."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def check_driver() -> int:
    """How many GPUs the driver finds. Raises DiffSegError for none, or no driver: other calls may crash without one."""
    advice = "use device='cpu', or install the NVIDIA driver"
    try:
        driver = open_driver()
    except OSError as error:
        raise DiffSegError(
            f"device 'cuda' needs an NVIDIA GPU and its driver, found none ({error}); {advice}"
        ) from None
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        raise DiffSegError(f"device 'cuda' needs an NVIDIA GPU: its driver is here, but finds none; {advice}")
    return count.value


@lru_cache(maxsize=8)
def driver_architecture(device: int) -> int:
    """Compute capability of a device as two or three digits, from the driver alone: 87 for 8.7.

    Raises:
        DiffSegError: without a driver, or without that device.
    """
    devices = check_driver()
    if device >= devices:
        raise DiffSegError(f"device 'cuda:{device}': expected cuda:0 to cuda:{devices - 1}; choose one of them")
    driver = open_driver()
    handle, major, minor = (ctypes.c_int(0) for _ in range(3))
    driver.cuDeviceGet(ctypes.byref(handle), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, handle)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, handle)
    return 10 * major.value + minor.value


def find_nvcc() -> Path:
    """Nvcc on PATH, below CUDA_HOME or CUDA_PATH, or of the package nvidia-cuda-nvcc. Raises DiffSegError."""
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
        "installed; 'pip install nvidia-cuda-nvcc nvidia-cuda-cccl' or install the CUDA toolkit, or put a library "
        f"that was built elsewhere with 'python -m runtime.native build' beside the engine as {NAME}"
    )


def build_library(target: Path, architectures: Sequence[int] = ARCHITECTURES) -> Path:
    """Build the library for GPUs into `target`, a file. Raises DiffSegError with the compiler's words."""
    nvcc = find_nvcc()
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    # GPUs after the newest, and those between it and the one before it, compile for themselves.
    code += [f"-gencode=arch=compute_{a},code=compute_{a}" for a in sorted(architectures)[-2:]]
    command = [str(nvcc), "-std=c++17", "-O3", "--shared", "-cudart=static", *code, "-Werror", "all-warnings"]
    # The wheels keep their libraries where nvcc does not look.
    libraries = nvcc.parent.parent / "lib"
    if (libraries / "libcudart_static.a").is_file():
        command.append(f"-L{libraries}")
    if sys.platform != "win32":
        command += ["-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror"]
    return _compile([*command, "-DDIFFSEG_BUILDING", "-DDIFFSEG_SHARED", str(SOURCE)], target)


def build_cpu_library(target: Path, flags: Sequence[str] = ()) -> Path:
    """Build the kernels for the CPU, one after the other: for tests, examples and CI, not for speed."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if not compiler:
        raise DiffSegError("no C++ compiler: neither g++ nor clang++ is on PATH; install one, or name it in CXX")
    command = [compiler, "-x", "c++", "-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", *STRICT]
    # Built where it runs: on x86 the processor's own vector units are worth a factor of four.
    native = ["-march=native"] if platform.machine() in ("x86_64", "AMD64") else []
    return _compile([*command, *native, "-pthread", "-DDIFFSEG_CPU", *flags, str(SOURCE)], target)


def _compile(command: list[str], target: Path) -> Path:
    """Run a compiler; the target appears whole or not at all."""
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

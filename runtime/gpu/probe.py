"""Whether there is a GPU. Only the driver is asked, since any other CUDA call may crash without one."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

from runtime.errors import DiffSegError


def open_driver() -> ctypes.CDLL:
    """NVIDIA's driver library. Raises OSError when there is none."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def check_driver() -> int:
    """The number of GPUs that the driver finds. Raises DiffSegError without a GPU or without a driver."""
    advice = "use device='cpu', or install the NVIDIA driver"
    try:
        driver = open_driver()
    except OSError as error:
        raise DiffSegError(
            f"device 'cuda' needs an NVIDIA GPU and its driver, found none ({error}); {advice}"
        ) from None
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        raise DiffSegError(f"device 'cuda' needs an NVIDIA GPU: its driver is installed, but finds none; {advice}")
    return count.value


def driver_cuda() -> tuple[int, int] | None:
    """The version of CUDA that the driver runs, (12, 4); None if it does not say. Raises OSError without a driver."""
    version = ctypes.c_int(0)
    function = getattr(open_driver(), "cuDriverGetVersion", None)
    if function is None or function(ctypes.byref(version)) or version.value < 1000:
        return None
    return version.value // 1000, version.value % 1000 // 10


@lru_cache(maxsize=8)
def driver_architecture(device: int) -> int:
    """Compute capability of a device as a number of two or three digits: 87 for 8.7.

    Raises:
        DiffSegError: without a driver or without that device.
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

"""The merge core for GPUs: the library of `diffseg.h`, found or built, and loaded through ctypes.

Importing this package loads nothing heavy and touches no GPU.
"""

from runtime.native.calls import device_number, load, release, run, segment

__all__ = ["device_number", "load", "release", "run", "segment"]

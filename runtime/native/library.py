"""The C library of `diffseg.h` through ctypes: structs, functions, and statuses as exceptions."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

from runtime.errors import DiffSegError

ABI_VERSION = 3
MAX_LEVELS, MAX_ITERATIONS = 8, 16
STAGES = ("aggregate", "divergence", "means", "later iterations", "labels")
INPUT_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
LABEL_TYPES = {"uint8": 0, "uint16": 1}
# Statuses for invalid arguments: these become ValueError, as from the merge on the CPU.
ARGUMENT_STATUSES = frozenset((1, 3, 4, 5, 6, 7, 8, 9, 14, 15))


class Config(ctypes.Structure):
    """`diffseg_config`: settings that stay the same from frame to frame."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("device", c_int32),
        ("max_batch", c_int32),
        ("levels", c_int32),
        ("grids", c_int32 * 2 * MAX_LEVELS),
        ("input_type", c_int32),
        ("anchors", c_int32),
        ("iterations", c_int32),
        ("weights", c_float * MAX_LEVELS),
    )

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(Config), abi_version=ABI_VERSION, **fields)


class Frames(ctypes.Structure):
    """`diffseg_frames`: the pointers, sizes and thresholds of one call."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("batch", c_int32),
        ("label_type", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("again", c_int32),
        ("blocks", c_int32 * 2),
        ("thresholds", c_float * MAX_ITERATIONS),
        ("maps", c_void_p * MAX_LEVELS),
        ("labels", c_void_p),
        ("segments", c_void_p),
        ("proposals", c_void_p),
        ("attention", c_void_p),
        ("attention_blocks", c_void_p),
        ("proposal_blocks", c_void_p),
    )

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(Frames), abi_version=ABI_VERSION, **fields)


# Functions that return a status, and the types of their arguments.
_FUNCTIONS = {
    "diffseg_workspace_size": (POINTER(Config), POINTER(c_size_t)),
    "diffseg_create": (POINTER(Config), c_void_p, c_size_t, POINTER(c_void_p)),
    "diffseg_run": (c_void_p, POINTER(Frames), c_void_p),
    "diffseg_part_means": (c_void_p, c_int32, c_void_p, c_int32, c_void_p, c_void_p),
    "diffseg_check": (c_void_p, c_void_p, POINTER(c_int32)),
    "diffseg_profile": (c_void_p, POINTER(Frames), c_void_p, POINTER(c_float)),
    "diffseg_device_count": (POINTER(c_int32),),
    "diffseg_device_name": (c_int32, c_char_p, c_size_t, POINTER(c_int32)),
    "diffseg_allocate": (c_int32, c_size_t, POINTER(c_void_p)),
    "diffseg_upload": (c_int32, c_void_p, c_void_p, c_size_t, c_void_p),
    "diffseg_download": (c_int32, c_void_p, c_void_p, c_size_t, c_void_p),
}


class Library:
    """A loaded library.

    Attributes:
        backend: what it runs on, "cuda" or "cpu".
        built: the hash of its sources and its architectures, "0123456789ab_sm87_ptx87".
    """

    def __init__(self, path: Path) -> None:
        """Load it. Raises DiffSegError when the file is not a library of this version's interface."""
        self.path = path
        try:
            self.c = ctypes.CDLL(str(path))
            self.c.diffseg_abi_version.restype = c_uint32
            found = int(self.c.diffseg_abi_version())
        except (OSError, AttributeError) as error:
            raise DiffSegError(
                f"{path} is not a library of this merge core ({error}); "
                "remove it and build it again with 'python -m runtime.native build'"
            ) from None
        if found != ABI_VERSION:
            raise DiffSegError(
                f"{path}: expected version {ABI_VERSION} of its interface, found {found}; "
                "build it again with 'python -m runtime.native build'"
            )
        for name, arguments in _FUNCTIONS.items():
            function = getattr(self.c, name)
            function.argtypes, function.restype = arguments, c_int32
        for name, text_arguments in (("status_text", [c_int32]), ("last_error", []), ("backend", []), ("built", [])):
            function = getattr(self.c, f"diffseg_{name}")
            function.argtypes, function.restype = text_arguments, c_char_p
        self.c.diffseg_destroy.argtypes, self.c.diffseg_destroy.restype = [c_void_p], None
        self.c.diffseg_free.argtypes, self.c.diffseg_free.restype = [c_int32, c_void_p], None
        self.backend: str = self.c.diffseg_backend().decode()
        self.built: str = self.c.diffseg_built().decode()

    def call(self, name: str, *arguments: Any) -> None:
        """Run `diffseg_<name>`. Raises ValueError for an invalid argument, DiffSegError when the device fails."""
        status = getattr(self.c, f"diffseg_{name}")(*arguments)
        if status:
            text = f"{self.c.diffseg_status_text(status).decode()} ({self.c.diffseg_last_error().decode()})"
            raise ValueError(text) if status in ARGUMENT_STATUSES else DiffSegError(text)

    def device_count(self) -> int:
        """The number of devices. Raises DiffSegError without a driver."""
        count = c_int32()
        self.call("device_count", byref(count))
        return count.value

    def device_name(self, device: int) -> tuple[str, int]:
        """The name of a device, and its compute capability as two digits: 90 for 9.0."""
        name, capability = ctypes.create_string_buffer(256), c_int32()
        self.call("device_name", device, name, len(name), byref(capability))
        return name.value.decode(), capability.value


class Memory:
    """Device memory of `size` bytes, freed with this object. Raises DiffSegError when there is too little."""

    def __init__(self, library: Library, device: int, size: int) -> None:
        self._library, self._device, self.size = library, device, size
        pointer = c_void_p()
        library.call("allocate", device, max(size, 1), byref(pointer))
        self.pointer = pointer.value or 0

    def upload(self, array: Any, stream: int = 0) -> None:
        """Copy a contiguous NumPy array to the device."""
        self._library.call("upload", self._device, self.pointer, array.ctypes.data, array.nbytes, stream)

    def download(self, array: Any, stream: int = 0) -> None:
        """Copy from the device into a contiguous NumPy array."""
        self._library.call("download", self._device, array.ctypes.data, self.pointer, array.nbytes, stream)

    def __del__(self) -> None:
        if getattr(self, "pointer", 0):
            self._library.c.diffseg_free(self._device, self.pointer)
            self.pointer = 0

"""CUDA through the driver's own library: the streams, events, memory and graphs that running an engine needs.

Every machine with a GPU has the driver. cuda-python would be one more package for the same calls, and the native
library must be compiled first, which an engine that gives labels does not need.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError
from runtime.gpu import probe

if TYPE_CHECKING:
    from numpy.typing import NDArray

NON_BLOCKING = 1  # a stream that does not wait for the default one
NO_TIMING = 2  # an event that only orders
THREAD_LOCAL = 1  # a capture that lets other threads allocate
ORDINAL = 9  # attribute of a pointer: the number of its GPU

_HANDLE = POINTER(c_void_p)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (_HANDLE, c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (_HANDLE,),
    "cuCtxSynchronize": (),
    "cuPointerGetAttribute": (c_void_p, c_int, c_uint64),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (_HANDLE, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (_HANDLE, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, _HANDLE),
    "cuEventCreate": (_HANDLE, c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuGraphInstantiateWithFlags": (_HANDLE, c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    probe.check_driver()
    driver = probe.open_driver()
    for name, arguments in _FUNCTIONS.items():
        function = getattr(driver, name)
        function.argtypes, function.restype = arguments, c_int
    return driver


def _try(name: str, *arguments: Any) -> int:
    """Call a function of the driver and return its status."""
    return int(getattr(_driver(), name)(*arguments))


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the driver. Raises DiffSegError with CUDA's name of the error when it fails."""
    status = _try(name, *arguments)
    if status:
        text = c_char_p()
        _try("cuGetErrorName", status, byref(text))
        error = (text.value or b"unknown error").decode()
        advice = "; close what else uses the GPU, or use a smaller engine" if error.endswith("OUT_OF_MEMORY") else ""
        raise DiffSegError(f"CUDA: {name} failed with {error} ({status}){advice}")


def device_of(pointer: int) -> int | None:
    """The number of the GPU whose memory is at an address; None without a driver, or if the memory is not CUDA's."""
    number = c_int(-1)
    try:
        unknown = _try("cuPointerGetAttribute", byref(number), ORDINAL, pointer)
    except DiffSegError:
        return None
    return None if unknown or number.value < 0 else number.value


def download(to: int, source: int, size: int) -> None:
    """Copy `size` bytes from the address `source` on the GPU in use to the host's address `to`, and wait for it."""
    _call("cuMemcpyDtoHAsync_v2", to, source, size, None)  # on the default stream
    _call("cuCtxSynchronize")


@lru_cache(maxsize=64)
def gpu(number: int) -> Gpu:
    """The GPU of that number. Raises DiffSegError without a driver or without that GPU."""
    return Gpu(number)


class Gpu:
    """A GPU and its primary context. TensorRT and the merge core use the same context, so pointers are valid in all.

    Attributes:
        number, name: of the GPU.
        capability: compute capability, "8.9".
        memory: in bytes.
    """

    def __init__(self, number: int) -> None:
        architecture = probe.driver_architecture(number)
        self.driver = _driver()
        self.number, self.capability = number, f"{architecture // 10}.{architecture % 10}"
        device, name, memory, context = c_int(), ctypes.create_string_buffer(256), c_size_t(), c_void_p()
        _call("cuDeviceGet", byref(device), number)
        _call("cuDeviceGetName", name, len(name), device)
        _call("cuDeviceTotalMem_v2", byref(memory), device)
        _call("cuDevicePrimaryCtxRetain", byref(context), device)  # until the process ends
        self.name, self.memory = name.value.decode(), memory.value
        self._context = context.value

    def use(self) -> None:
        """Make this the calling thread's GPU, on which the calls of this module act."""
        _call("cuCtxSetCurrent", self._context)

    def wait(self) -> None:
        """Make the host wait for all work on this GPU, of every library. Raises DiffSegError if any of it failed."""
        _call("cuCtxPushCurrent_v2", self._context)  # other libraries keep their current GPU
        try:
            _call("cuCtxSynchronize")
        finally:
            _call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def free(self) -> int:
        """Free memory in bytes."""
        self.use()
        free, total = c_size_t(), c_size_t()
        _call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value


class _Owned:
    """An object of the driver, destroyed with its Python owner, on any thread."""

    handle: int

    def __init__(self, card: Gpu, create: str, *arguments: Any, destroy: str, kind: Any = c_void_p) -> None:
        card.use()
        handle = kind()
        _call(create, byref(handle), *arguments)
        self.handle, self.card = handle.value or 0, card
        self._close = weakref.finalize(self, _destroy, card, destroy, self.handle)

    def close(self) -> None:
        """Destroy it now."""
        self._close()


def _destroy(card: Gpu, name: str, handle: int) -> None:
    # The garbage collector may run on any thread, which must keep its current GPU: push and pop. If the context is
    # lost nothing can be destroyed, and the error has been raised already.
    if not card.driver.cuCtxPushCurrent_v2(card._context):
        getattr(card.driver, name)(handle)
        card.driver.cuCtxPopCurrent_v2(byref(c_void_p()))


class Buffer(_Owned):
    """Memory on a GPU: `handle` is its address."""

    def __init__(self, card: Gpu, size: int) -> None:
        super().__init__(card, "cuMemAlloc_v2", max(size, 1), destroy="cuMemFree_v2", kind=c_uint64)
        self.size = size


class Pinned(_Owned):
    """Page-locked memory on the host, which a GPU copies from and to by itself. `size`: in bytes."""

    def __init__(self, card: Gpu, size: int) -> None:
        super().__init__(card, "cuMemHostAlloc", max(size, 1), 0, destroy="cuMemFreeHost")
        self.size = size

    def array(self, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """This memory from its start as an array. It is valid as long as this object exists."""
        import numpy as np

        kind, count = np.dtype(dtype), math.prod(shape)
        memory = (ctypes.c_uint8 * (count * kind.itemsize)).from_address(self.handle)
        return np.ctypeslib.as_array(memory).view(kind).reshape(shape)


class Event(_Owned):
    """A mark in a stream that other streams and the host can wait for."""

    def __init__(self, card: Gpu) -> None:
        super().__init__(card, "cuEventCreate", NO_TIMING, destroy="cuEventDestroy_v2")

    def wait(self) -> None:
        """Make the host wait for the mark. Returns at once if no stream was marked."""
        _call("cuEventSynchronize", self.handle)


class Graph(_Owned):
    """A captured sequence of work, which can be launched many times."""

    def __init__(self, card: Gpu, graph: int) -> None:
        super().__init__(card, "cuGraphInstantiateWithFlags", graph, 0, destroy="cuGraphExecDestroy")


class Stream(_Owned):
    """A queue of work on a GPU. All methods only queue work, except `wait`."""

    def __init__(self, card: Gpu) -> None:
        super().__init__(card, "cuStreamCreate", NON_BLOCKING, destroy="cuStreamDestroy_v2")

    def wait(self) -> None:
        """Make the host wait until all work is done. Raises DiffSegError if any of it failed."""
        _call("cuStreamSynchronize", self.handle)

    def upload(self, to: Buffer, source: Pinned, size: int) -> None:
        """Copy `size` bytes to the GPU."""
        _call("cuMemcpyHtoDAsync_v2", to.handle, source.handle, size, self.handle)

    def download(self, to: Pinned, source: Buffer, size: int) -> None:
        """Copy `size` bytes to the host."""
        _call("cuMemcpyDtoHAsync_v2", to.handle, source.handle, size, self.handle)

    def copy(self, to: Buffer, source: Buffer, size: int) -> None:
        """Copy `size` bytes on the GPU."""
        _call("cuMemcpyDtoDAsync_v2", to.handle, source.handle, size, self.handle)

    def mark(self, event: Event) -> None:
        """Mark this place in the queue with the event."""
        _call("cuEventRecord", event.handle, self.handle)

    def after(self, event: Event) -> None:
        """Make the work that is queued from now on wait for the event."""
        _call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def launch(self, graph: Graph) -> None:
        """Queue a captured sequence."""
        _call("cuGraphLaunch", graph.handle, self.handle)

    def begin_capture(self) -> None:
        """From now on, record work instead of running it."""
        _call("cuStreamBeginCapture_v2", self.handle, THREAD_LOCAL)

    def end_capture(self) -> Graph | None:
        """The recorded work; None if part of it cannot be captured."""
        graph = c_void_p()
        if _try("cuStreamEndCapture", self.handle, byref(graph)) or not graph.value:
            return None
        try:
            return Graph(self.card, graph.value)
        except DiffSegError:
            return None
        finally:
            _try("cuGraphDestroy", graph.value)

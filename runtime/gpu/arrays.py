"""Arrays that are already on a GPU, used in place: DLPack, the CUDA array interface, values of ONNX Runtime."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError
from runtime.gpu import driver

if TYPE_CHECKING:
    from numpy.typing import NDArray

ON_GPU = (2, 13)  # DLPack's numbers: CUDA memory, and managed memory, which both sides read
DEFAULT_STREAM = 1  # as DLPack and the CUDA array interface say it
# The types that the merge core reads: by DLPack's (kind, bits), and by the names of the other two.
DLPACK_TYPES = {(2, 32): "float32", (2, 16): "float16", (4, 16): "bfloat16"}
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "uint8": 1}
INTERFACE_TYPES = {"<f4": "float32", "<f2": "float16"}
ORT_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """A contiguous array on a GPU.

    Attributes:
        pointer: device address of the first element.
        shape, dtype: "float32", "float16" or "bfloat16"; the backends also give "uint8" and "int32".
        device: number of the GPU; None if neither the producer nor the driver says.
        owner: the object that keeps the memory allocated.
        stream: CUDA stream that writes the array; 0 for the default stream.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device: int | None
    owner: Any = field(repr=False, compare=False)
    stream: int = 0

    def frame(self, number: int) -> DeviceArray:
        """One of a batch [B, …]: an array […] in the same memory."""
        step = SIZES[self.dtype] * prod(self.shape[1:])
        return replace(self, pointer=self.pointer + number * step, shape=self.shape[1:])


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("offset", c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p))


def to_host(array: DeviceArray) -> NDArray[Any]:
    """A copy of a float32 array on the host, once what is under way on the GPU has written it.

    Raises DiffSegError where the array is of another type, or the GPU failed.
    """
    import numpy as np

    if array.dtype != "float32":
        raise DiffSegError(f"expected an array float32 on the GPU, found {array.dtype}; export the engine again")
    found = np.empty(array.shape, np.float32)
    card = driver.gpu(array.device or 0)
    card.wait()
    card.use()
    driver.download(found.ctypes.data, array.pointer, found.nbytes)
    return found


def device_array(array: Any, name: str, stream: int = 0) -> DeviceArray | None:
    """The array, if it is on a GPU; None if it is on the host.

    DLPack is asked first: it knows every type, names the device, and makes the reading stream wait for the writing one.
    PyTorch's CUDA array interface does none of that.

    Args:
        array: anything with DLPack or the CUDA array interface, an OrtValue, or a `DeviceArray`.
        name: for messages.
        stream: CUDA stream that will read it.

    Raises:
        ValueError: if it is on a GPU, but not contiguous or of a type that the merge core does not read.
    """
    if isinstance(array, DeviceArray):
        return array
    if hasattr(array, "data_ptr") and callable(getattr(array, "device_name", None)):
        return _from_ort(array, name)
    where: Callable[[], tuple[int, int]] | None = getattr(array, "__dlpack_device__", None)
    if where is None:
        interface = getattr(array, "__cuda_array_interface__", None)
        return None if interface is None else _from_interface(array, interface, name)
    kind, device = map(int, where())
    if kind not in ON_GPU:
        return None
    try:
        capsule = array.__dlpack__(stream=stream or DEFAULT_STREAM)
    except (BufferError, RuntimeError) as error:  # as for a tensor of PyTorch that requires gradients
        raise ValueError(
            f"{name}: cannot be read in place ({error}); expected a plain array; detach or copy it"
        ) from None
    return replace(from_capsule(capsule, name), device=device)


def from_capsule(capsule: Any, name: str) -> DeviceArray:
    """The array in a DLPack capsule, which keeps it allocated. `name`: for messages. Raises as `device_array`."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.argtypes, get.restype = [ctypes.py_object, c_char_p], c_void_p
    # The capsule keeps its name, "dltensor": so it frees the tensor when our reference, the last one, goes.
    tensor = ctypes.cast(get(capsule, b"dltensor"), POINTER(_Managed)).contents.tensor
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides and tuple(tensor.strides[: tensor.ndim]) != _row_major(shape):
        raise _not_contiguous(name)
    dtype = DLPACK_TYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if dtype is None:
        raise _bad_type(name, f"DLPack type {tensor.code} of {tensor.bits} bits")
    return DeviceArray((tensor.data or 0) + tensor.offset, shape, dtype, tensor.device, capsule)


def _from_interface(array: Any, interface: dict[str, Any], name: str) -> DeviceArray:
    shape = tuple(interface["shape"])
    dtype = INTERFACE_TYPES.get(interface["typestr"])
    if dtype is None:
        raise _bad_type(name, interface["typestr"])
    strides, size = interface.get("strides"), SIZES[dtype]
    if strides is not None and tuple(strides) != tuple(size * step for step in _row_major(shape)):
        raise _not_contiguous(name)
    pointer = int(interface["data"][0])
    device = driver.device_of(pointer)
    if interface.get("version", 0) < 3 and device is not None:
        driver.gpu(device).wait()  # before version 3 the interface does not say which stream writes the array
    # From version 3 on it gives CUDA's own stream, or none if the array is complete already.
    return DeviceArray(pointer, shape, dtype, device, array, int(interface.get("stream") or 0))


def _from_ort(value: Any, name: str) -> DeviceArray | None:
    """An OrtValue of ONNX Runtime's IOBinding, which is always contiguous; None if it is on the host."""
    if value.device_name() != "cuda":
        return None
    dtype = ORT_TYPES.get(value.data_type())
    if dtype is None:
        raise _bad_type(name, value.data_type())
    pointer = value.data_ptr()
    return DeviceArray(pointer, tuple(value.shape()), dtype, driver.device_of(pointer), value)


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _not_contiguous(name: str) -> ValueError:
    return ValueError(f"{name}: expected a contiguous array on the GPU, found a strided one; copy it first")


def _bad_type(name: str, found: str) -> ValueError:
    return ValueError(
        f"{name}: expected float32, float16 or (through DLPack) bfloat16 on the GPU, found {found}; convert it first"
    )

"""Arrays on a GPU: who is asked about them, where they are, and what waits for what writes them."""

from types import SimpleNamespace

import numpy as np
import pytest

from runtime import native
from runtime.errors import DiffSegError
from runtime.gpu import driver
from runtime.gpu.arrays import DeviceArray, device_array
from runtime.pyramid.config import MergeConfig

MAPS = np.full((2, 16, 16), 1 / 16, np.float32)


class Everything:
    """What PyTorch and CuPy offer: both protocols, of which the CUDA array interface says less."""

    def __init__(self, array, device=(2, 0), version=2, **interface):
        self.array, self.device, self.streams = array, device, []
        self.__cuda_array_interface__ = {
            "shape": tuple(array.shape),
            "typestr": "<f4",
            "data": (array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr(), False),
            "version": version,
            **interface,
        }

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, stream=None):
        self.streams.append(stream)
        return self.array.__dlpack__()


class InterfaceOnly(Everything):
    """What older libraries offer."""

    __dlpack_device__ = None


@pytest.fixture
def gpus(monkeypatch):
    """A driver that knows every pointer to be on the GPU `gpus.number`, and notes who waits."""
    state = SimpleNamespace(number=1, waited=[])
    monkeypatch.setattr(driver, "device_of", lambda pointer: state.number)
    monkeypatch.setattr(driver, "gpu", lambda number: SimpleNamespace(wait=lambda: state.waited.append(number)))
    return state


def test_dlpack_is_asked_first(gpus):
    """It makes the stream that reads wait for the one that writes, and names the GPU."""
    array = Everything(MAPS, (2, 3))
    found = device_array(array, "maps")
    assert (found.pointer, found.shape, found.dtype, found.device) == (MAPS.ctypes.data, (2, 16, 16), "float32", 3)
    assert array.streams == [1] and gpus.waited == []
    device_array(array, "maps", stream=77)
    assert array.streams == [1, 77]


def test_types_of_pytorch():
    torch = pytest.importorskip("torch")
    for dtype in ("float32", "float16", "bfloat16"):
        tensor = torch.ones((3, 4, 4), dtype=getattr(torch, dtype))
        found = device_array(Everything(tensor), "maps")
        assert (found.pointer, found.dtype) == (tensor.data_ptr(), dtype)
        assert found.frame(2).pointer == tensor[2].data_ptr()
    with pytest.raises(ValueError, match=r"^maps: cannot be read in place \(.*gradient.*detach or copy it$"):
        device_array(Everything(torch.ones((4, 4), requires_grad=True)), "maps")


def test_memory_of_the_host_is_uploaded():
    for kind, where in ((1, None), (3, None), (13, DeviceArray)):  # the CPU's, page-locked, managed
        found = device_array(Everything(MAPS, (kind, 0)), "maps")
        assert found is None if where is None else isinstance(found, where)


def test_interface_alone(gpus):
    """The driver says which GPU it is; before version 3 all of its work is waited for."""
    assert device_array(InterfaceOnly(MAPS, version=3, stream=9), "maps").stream == 9
    assert device_array(InterfaceOnly(MAPS, version=3, stream=None), "maps").stream == 0
    assert gpus.waited == []
    found = device_array(InterfaceOnly(MAPS, version=2), "maps")
    assert (found.device, found.stream, gpus.waited) == (1, 0, [1])


def test_maps_on_another_gpu(gpus, cpu_library):
    value = SimpleNamespace(
        data_ptr=lambda: MAPS.ctypes.data,
        device_name=lambda: "cuda",
        data_type=lambda: "tensor(float)",
        shape=lambda: list(MAPS.shape),
    )
    for array in (InterfaceOnly(MAPS), Everything(MAPS, (2, 1)), value):
        with pytest.raises(ValueError, match="expected maps on 'cuda:0', found them on 'cuda:1'; pass that"):
            native.segment([array], MergeConfig(grid=4), (8, 8), device="cuda:0", library=cpu_library)


def test_without_a_driver(monkeypatch):
    def absent():
        raise DiffSegError("no driver")

    driver._driver.cache_clear()
    monkeypatch.setattr(driver.probe, "check_driver", absent)
    assert driver.device_of(MAPS.ctypes.data) is None

"""ONNX Runtime on CUDA, as far as a machine without it shows: what is bound where, and what is refused."""

import warnings

import numpy as np
import onnxruntime as ort
import pytest

from runtime import DiffSegError
from runtime.engine.registry import EMBEDDED, open_engine

FRAMES = np.zeros((1, 256, 256, 3), np.uint8)


class Value:
    """An output as ONNX Runtime gives it."""

    def __init__(self, where):
        self.where = where

    def device_name(self):
        return self.where

    def data_type(self):
        return "tensor(float)"

    def data_ptr(self):
        return 4096

    def shape(self):
        return [1, 4, 4]


class Binding:
    def __init__(self, calls, where):
        self.calls, self.where = calls, where

    def bind_cpu_input(self, name, array):
        self.calls.append(("input", name, array.shape))

    def bind_output(self, name, device, number):
        self.calls.append(("output", name, device, number))

    def synchronize_outputs(self):
        self.calls.append(("wait",))

    def get_outputs(self):
        return [Value(self.where) for call in self.calls if call[0] == "output"]


class Session:
    def __init__(self, where):
        self.calls, self.where = [], where

    def io_binding(self):
        return Binding(self.calls, self.where)

    def run_with_iobinding(self, binding):
        self.calls.append(("run",))


def engine_on(where):
    engine = open_engine(EMBEDDED, "cpu", "onnxruntime")
    assert not engine.on_device
    engine.device, engine.on_device, engine.session = "cuda:1", True, Session(where)
    return engine


def test_outputs_are_bound_to_the_gpu_and_waited_for():
    engine = engine_on("cuda")
    maps = engine.infer_on_device(FRAMES)
    names = [level.output for level in engine.spec.levels]
    assert engine.session.calls == [
        ("input", "frame", FRAMES.shape),
        *(("output", name, "cuda", 1) for name in names),
        ("run",),
        ("wait",),
    ]
    assert [level.pointer for level in maps] == [4096] * 4 and all(level.stream == 0 for level in maps)


def test_outputs_left_on_the_host_are_an_error():
    with pytest.raises(DiffSegError, match="left its outputs on the host, asked for cuda:1"):
        engine_on("cpu").infer_on_device(FRAMES)


def test_maps_of_an_engine_on_the_cpu_are_on_no_gpu():
    with pytest.raises(DiffSegError, match=r"infer_on_device: expected .* on a GPU, found the head attention on cpu"):
        open_engine(EMBEDDED, "cpu", "onnxruntime").infer_on_device(FRAMES)


@pytest.mark.parametrize(
    ("machine", "advice"),
    [
        ("x86_64", r"pip uninstall onnxruntime && pip install 'diffseg\[gpu\]'"),
        ("aarch64", r"on ARM PyPI has none with it: build a plan .*or install NVIDIA's onnxruntime-gpu for JetPack"),
    ],
)
def test_without_cuda_it_says_what_to_install(monkeypatch, machine, advice):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(DiffSegError, match=rf"has no CUDA .*; {advice}, or use --device cpu"):
        open_engine(EMBEDDED, "cuda", "onnxruntime")


@pytest.mark.slow
def test_provider_that_does_not_start(monkeypatch):
    """As with onnxruntime-gpu on a machine without CUDA's libraries: it falls back with a line in a log."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DiffSegError, match=r"CUDAExecutionProvider, which did not start; .*diffseg\[gpu\]"):
            open_engine(EMBEDDED, "cuda", "onnxruntime")
        engine = open_engine(EMBEDDED, "auto", "onnxruntime")
    assert (engine.device, engine.on_device) == ("cpu", False)

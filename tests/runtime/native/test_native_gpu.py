"""What only a GPU can show: capture into a CUDA graph, no host synchronisation, and compute-sanitizer's tools."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.merge.segment import segment_attention
from runtime.native.library import Frames, Memory
from runtime.pyramid.config import MergeConfig
from tests.runtime.merge.plain import random_pyramid
from tests.runtime.native.test_native import core_for
from tools.gpu_check.kernels import SMALL

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[3]
GRIDS = [(16, 16), (8, 8)]
CONFIG = MergeConfig((0.2,) * 3, 8)


def driver_call(name, *arguments):
    driver = ctypes.CDLL("libcuda.so.1")
    assert getattr(driver, name)(*arguments) == 0, name


def test_segment_attention_on_cuda(cuda_library):
    pyramid = random_pyramid(np.random.default_rng(0), GRIDS)
    found = segment_attention(pyramid, CONFIG, size=(64, 64), device="cuda")
    assert np.mean(found != segment_attention(pyramid, CONFIG, size=(64, 64))) <= 0.001


def test_cuda_graph(cuda_library):
    """One capture serves every frame: nothing in the sequence of launches depends on what the maps hold."""
    core = core_for(cuda_library, CONFIG, GRIDS)
    pyramids = [random_pyramid(np.random.default_rng(seed), GRIDS) for seed in range(3)]
    memory = [Memory(cuda_library, 0, level.nbytes) for level in pyramids[0]]
    labels = Memory(cuda_library, 0, 64 * 64)
    frames = Frames(batch=1, height=64, width=64, labels=labels.pointer)
    frames.maps[:2] = [level.pointer for level in memory]
    frames.thresholds[:3] = CONFIG.thresholds
    stream, graph, executable = (ctypes.c_void_p() for _ in range(3))
    driver_call("cuStreamCreate", ctypes.byref(stream), 1)
    driver_call("cuStreamBeginCapture_v2", stream, 2)
    cuda_library.call("run", core._handle, ctypes.byref(frames), stream)
    driver_call("cuStreamEndCapture", stream, ctypes.byref(graph))
    driver_call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    for pyramid in pyramids:
        for level, target in zip(pyramid, memory, strict=True):
            target.upload(level, stream)
        driver_call("cuGraphLaunch", executable, stream)
        cuda_library.call("check", core._handle, stream, None)
        found = np.empty((64, 64), np.uint8)
        labels.download(found, stream)
        assert np.mean(found != segment_attention(pyramid, CONFIG, size=(64, 64))) <= 0.001
    driver_call("cuGraphExecDestroy", executable)
    driver_call("cuGraphDestroy", graph)
    driver_call("cuStreamDestroy_v2", stream)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_compute_sanitizer(cuda_library, tool):
    sanitizer = shutil.which("compute-sanitizer")
    if not sanitizer:
        pytest.skip("compute-sanitizer is not on PATH")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SMALL, str(cuda_library.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "(2, 40, 50)" in done.stdout

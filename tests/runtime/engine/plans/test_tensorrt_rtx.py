"""What TensorRT-RTX has and TensorRT has not: kernels compiled in the first run and kept, and its word on a file."""

import enum
import gc
import sys

import numpy as np
import pytest

from runtime import DiffSegError
from runtime.engine.registry import open_engine
from tests.runtime.engine.plans import conftest as stand_ins

FRAMES = np.zeros((1, 256, 256, 3), np.uint8)
Validity = enum.IntEnum("Validity", "VALID SUBOPTIMAL INVALID", start=0)
Diagnostics = enum.IntFlag("Diagnostics", "VERSION_MISMATCH UNSUPPORTED_CC OLD_CUDA_DRIVER")
Strategy = enum.Enum("Strategy", "DISABLED WHOLE_GRAPH_CAPTURE")


class Cache(stand_ins.Noting):
    def deserialize(self, content):
        assert self.library.has_context()
        self.library.note(b"cache read")
        return content == b"compiled"

    def serialize(self):
        self.library.note(b"cache written")
        return bytearray(b"compiled")


class Config(stand_ins.Noting):
    cuda_graph_strategy = Strategy.DISABLED

    def create_runtime_cache(self):
        return Cache(self.library, "cache")

    def set_runtime_cache(self, cache):
        self.library.note(b"cache set")


@pytest.fixture
def rtx(tensorrt, driver, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", tensorrt)
    tensorrt.CudaGraphStrategy, tensorrt.EngineValidity = Strategy, Validity
    tensorrt.EngineInvalidityDiagnostics = Diagnostics
    tensorrt.validity = Validity.VALID, 0

    config = lambda engine: Config(driver, "config")  # noqa: E731
    monkeypatch.setattr(stand_ins.Engine, "create_runtime_config", config, raising=False)
    validity = lambda runtime, content: tensorrt.validity  # noqa: E731
    monkeypatch.setattr(stand_ins.Runtime, "get_engine_validity", validity, raising=False)
    return tensorrt


def test_what_is_compiled_is_kept(rtx, driver, tmp_path):
    path = rtx.prepare(tmp_path, flavour="tensorrt_rtx", gpu=None, compute_capability=None)
    engine = open_engine(path, "cuda")
    assert engine._runner.jit.config.cuda_graph_strategy is Strategy.WHOLE_GRAPH_CAPTURE
    words = driver.notes()
    assert words.index("cache set") < words.index("create context") and "cache read" not in words
    engine.infer(FRAMES)
    words = [word for word in driver.notes() if not word.startswith("alloc")]
    assert words[words.index("execute") :] == ["execute", "wait", "cache written", "download", "download", "wait"]
    engine.infer(FRAMES)
    assert not {"cache written", "begin capture"} & set(driver.notes())  # it captures by itself
    clone = engine.clone()
    words = driver.notes()
    assert words.index("cache read") < words.index("cache set") < words.index("create context")
    clone.infer(FRAMES)
    assert "cache written" not in driver.notes()
    del engine, clone
    gc.collect()
    ends = [word for word in driver.notes() if word.endswith("gone")]
    assert ends[:2] == ["context gone", "config gone"] and ends[-2:] == ["engine gone", "runtime gone"]
    assert driver.living() == 0


@pytest.mark.parametrize("content", [b"of another driver", None])
def test_a_cache_that_is_of_no_use(rtx, driver, tmp_path, content):
    """What it refuses is written again; a folder in its place is no failure."""
    path = rtx.prepare(tmp_path, flavour="tensorrt_rtx")
    open_engine(path, "cuda").infer(FRAMES)
    (kept,) = (tmp_path / "cache" / "diffseg").iterdir()
    kept.unlink()
    kept.mkdir() if content is None else kept.write_bytes(content)
    open_engine(path, "cuda").infer(FRAMES)
    assert kept.is_dir() if content is None else kept.read_bytes() == b"compiled"


def test_loops_are_not_captured(rtx, tmp_path):
    engine = open_engine(rtx.prepare(tmp_path, flavour="tensorrt_rtx", head="labels"), "cuda")
    assert engine._runner.jit.config.cuda_graph_strategy is Strategy.DISABLED


def test_its_own_word_on_a_file(rtx, tmp_path):
    path = rtx.prepare(tmp_path, flavour="tensorrt_rtx")
    rtx.validity = Validity.INVALID, int(Diagnostics.UNSUPPORTED_CC | Diagnostics.OLD_CUDA_DRIVER)
    with pytest.raises(
        DiffSegError, match=r"cannot run \S*unet.plan here: unsupported cc, old cuda driver; build it again .*_rtx'"
    ):
        open_engine(path, "cuda")
    rtx.validity = Validity.SUBOPTIMAL, 0
    open_engine(path, "cuda")

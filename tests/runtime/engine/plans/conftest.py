"""Stand-ins for the driver and for TensorRT, where there is neither: for the order of calls and for lifetimes."""

import ctypes
import hashlib
import shutil
import subprocess
import sys
import types
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.engine.backends.tensorrt_library import build_platform, tensor_shapes
from runtime.engine.plan_info import PlanInfo
from runtime.engine.registry import EMBEDDED
from runtime.engine.spec import EngineSpec, Level, sidecar_path
from runtime.gpu import driver as cuda
from runtime.gpu import probe

VERSION = "11.4.0.106"


def forget():
    for cached in (cuda._driver, cuda.gpu, probe.driver_architecture):
        cached.cache_clear()


@pytest.fixture(scope="session")
def driver_library(tmp_path_factory):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so"
    source = Path(__file__).parent / "driver.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", source, "-o", path], check=True)
    return path


@pytest.fixture
def driver(driver_library, monkeypatch, tmp_path_factory):
    """The stand-in in the driver's place; `notes()` gives what was called since the last time."""
    # A copy for every test: what another has left for the garbage collector does not count here.
    copied = shutil.copy(driver_library, tmp_path_factory.mktemp("driver") / "libcuda.so")
    library = ctypes.CDLL(str(copied))
    library.read_notes.restype = ctypes.c_char_p

    def notes():
        found = library.read_notes().decode().split("\n")[:-1]
        library.clear_notes()
        return found

    library.notes = notes
    forget()
    monkeypatch.setattr(probe, "open_driver", lambda: ctypes.CDLL(str(copied)))
    library.clear_notes()
    yield library
    forget()


@pytest.fixture
def no_driver(monkeypatch):
    def absent():
        raise OSError("libcuda.so.1: cannot open shared object file")

    forget()
    monkeypatch.setattr(probe, "open_driver", absent)
    yield
    forget()


def write_plan(
    folder, *, content=b"a plan", flavour="tensorrt", head="attention", batch=1, input="uint8-nhwc-bgr", **fields
):
    """A plan file with a right sidecar: the content is nobody's."""
    spec = EngineSpec.from_json(sidecar_path(EMBEDDED).read_text(), "the embedded engine's")
    levels = Level(8, 8, 1), Level(4, 4, 1)
    spec = replace(spec, head=head, batch=batch, input=input, grid=8, levels=levels, auto=False)
    given = {
        "version": VERSION,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "platform": build_platform(),
        "gpu": "Stand-in",
        "compute_capability": "8.9",
        "optimization_level": 3,
        "workspace": 2**32,
        "types": {},
        "arithmetic": {},
        "seconds": 1.0,
        "batch": None if batch else (1, 1, 3),
    }
    plan = PlanInfo(flavour=flavour, **(given | fields))
    path = folder / "unet.plan"
    path.write_bytes(content)
    sidecar_path(path).write_text(replace(spec, plan=plan).to_json())
    return path


class Noting:
    """Notes its end, as the driver notes its calls."""

    def __init__(self, library, name):
        self.library, self.name = library, name

    def __del__(self):
        self.library.note(f"{self.name} gone".encode())


class Context(Noting):
    def __init__(self, library, strategy):
        super().__init__(library, "context")
        self.addresses, self.shape = {}, None
        self.works = True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def set_input_shape(self, name, shape):
        self.shape = shape
        self.library.note(b"shape")
        return True

    def execute_async_v3(self, stream):
        assert isinstance(stream, int) and stream
        self.library.note(b"execute")
        if "segments" in self.addresses:  # all labels are 0
            counts = np.ones(self.frames, np.int32)  # which must live while it is copied: other threads run meanwhile
            ctypes.memmove(self.addresses["segments"], counts.ctypes.data, counts.nbytes)
        return self.works


class Engine(Noting):
    def __init__(self, library, shapes, kinds):
        super().__init__(library, "engine")
        self.shapes, self.kinds, self.contexts = shapes, kinds, []

    @property
    def num_io_tensors(self):
        return len(self.shapes)

    def get_tensor_name(self, index):
        return list(self.shapes)[index]

    def get_tensor_mode(self, name):
        return 1 if name in ("frame", "thresholds") else 2

    def get_tensor_shape(self, name):
        return self.shapes[name]

    def get_tensor_dtype(self, name):
        return self.kinds.get(name, np.float32)

    def create_execution_context(self, *strategy):
        assert self.library.has_context()
        self.library.note(b"create context")
        context = Context(self.library, strategy)
        context.frames = abs(self.shapes.get("segments", (0,))[0])
        self.contexts.append(weakref.proxy(context))
        return context


class Runtime(Noting):
    def __init__(self, module, library):
        super().__init__(library, "runtime")
        self.module = module

    def deserialize_cuda_engine(self, content):
        self.module.content = bytes(content)
        if self.module.refuses:
            self.module.logger.log(1, "Serialization assertion failed\nmagic tag does not match")
            return None
        engine = Engine(self.library, self.module.shapes, self.module.kinds)
        self.module.engine = weakref.proxy(engine)
        return engine


@pytest.fixture
def tensorrt(driver, monkeypatch):
    """A module in TensorRT's place that runs nothing."""
    module = types.ModuleType("tensorrt")
    module.__version__ = VERSION
    module.__spec__ = types.SimpleNamespace(name="tensorrt")
    module.refuses = False
    module.kinds = {"frame": np.uint8, "labels": np.uint8, "segments": np.int32}
    module.nptype = lambda kind: kind
    module.TensorIOMode = types.SimpleNamespace(INPUT=1, OUTPUT=2)

    class ILogger:
        ERROR = 1

        def __init__(self):
            pass

    def make(logger):
        module.logger = logger
        return Runtime(module, driver)

    module.ILogger, module.Runtime = ILogger, make
    monkeypatch.setitem(sys.modules, "tensorrt", module)

    def prepare(folder, **options):
        path = write_plan(folder, **options)
        from runtime.engine.plan import read_plan

        spec = read_plan(path)[0]
        module.shapes = tensor_shapes(spec)
        module.kinds["frame"] = np.dtype(spec.frame_input.type).type
        return path

    module.prepare = prepare
    return module

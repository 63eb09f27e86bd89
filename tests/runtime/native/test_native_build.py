"""The native library builds for every GPU, races nowhere, is found where it should be, and says what it lacks."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime import native
from runtime.errors import DiffSegError
from runtime.gpu import probe
from runtime.gpu.arrays import device_array, from_capsule
from runtime.merge.segment import segment_attention
from runtime.native import build, nvcc
from runtime.native.library import Config, Frames, Library
from runtime.pyramid.config import MergeConfig
from tests.runtime.merge.plain import random_pyramid
from tools.gpu_check.kernels import SMALL
from tools.sanitize.plan import HARNESS
from tools.sanitize.running import SEEDS, plant_seeds

SOURCES = Path(build.__file__).parent
TINY = Path(__file__).with_name("tiny.c")
C99 = ["gcc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
BARRIERS = re.findall(
    r"^ +([A-Z_]+) = (\d+)",
    re.search(r"enum Barrier \{(.*?)\};", (SOURCES / "platform.cuh").read_text(), re.S)[1],
    re.M,
)


def run(command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    return done.returncode, done.stdout + done.stderr


def must(command, **options):
    code, output = run(command, **options)
    assert code == 0, output
    return output


def test_from_c99(cpu_library, tmp_path):
    """The header is plain C99, and a C program gets its labels from the library."""
    must([*C99, "-c", TINY, "-o", tmp_path / "tiny.o"])
    must(
        ["g++", tmp_path / "tiny.o", cpu_library.path, "-o", tmp_path / "tiny", f"-Wl,-rpath,{cpu_library.path.parent}"]
    )
    assert must([tmp_path / "tiny"]) == "ok, 2 segments, 0 wrong\n"


def test_program_for_the_sanitizer(cpu_library):
    """What compute-sanitizer runs on hardware is a program that works."""
    assert must([sys.executable, "-c", SMALL, cpu_library.path], cwd=SOURCES.parents[1]) == "(2, 40, 50)\n"


# Runs the harness on files, as libFuzzer does with a corpus.
HARNESS_DRIVER = """
#include <cstdint>
#include <cstdio>
extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern unsigned long diffseg_segmented;
int main(int count, char **paths) {
    for (int i = 1; i < count; ++i) {
        uint8_t bytes[4096];
        FILE *file = fopen(paths[i], "rb");
        const size_t size = fread(bytes, 1, sizeof bytes, file);
        fclose(file);
        LLVMFuzzerTestOneInput(bytes, size);
    }
    printf("%lu\\n", diffseg_segmented);
}
"""


def test_the_harness_reaches_the_kernels(cpu_library, tmp_path):
    """Compiled without a sanitizer and without libFuzzer, on the seeds: all that it expects of the library is so."""
    plant_seeds(tmp_path / "corpus")
    (tmp_path / "driver.cpp").write_text(HARNESS_DRIVER)
    command = ["g++", "-std=c++17", *build.STRICT, f"-I{SOURCES}", HARNESS, tmp_path / "driver.cpp"]
    must([*command, cpu_library.path, f"-Wl,-rpath,{cpu_library.path.parent}", "-o", tmp_path / "harness"])
    seeds = sorted((tmp_path / "corpus").iterdir())
    assert len(seeds) == SEEDS
    assert int(must([tmp_path / "harness", *seeds])) > 20


def test_structs_are_the_headers(tmp_path):
    """ctypes and the compiler lay the structs out alike."""
    lines = []
    for name, struct in (("diffseg_config", Config), ("diffseg_frames", Frames)):
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        lines += [f'printf("%zu\\n", offsetof({name}, {field[0]}));' for field in struct._fields_]
    program = "#include <stdio.h>\n#include <diffseg.h>\nint main(void) {" + "".join(lines) + "return 0;}"
    (tmp_path / "offsets.c").write_text(program)
    must([*C99, tmp_path / "offsets.c", "-o", tmp_path / "offsets"])
    expected = []
    for struct in (Config, Frames):
        expected += [ctypes.sizeof(struct)] + [getattr(struct, field[0]).offset for field in struct._fields_]
    assert list(map(int, must([tmp_path / "offsets"]).split())) == expected


@pytest.fixture(scope="module")
def racing(tmp_path_factory):
    """The tiny program with the kernels' threads as real ones, under ThreadSanitizer, with both tile products."""
    folder = tmp_path_factory.mktemp("races")
    flags = ["-O1", "-g", "-fsanitize=thread"]
    kernels = ["-x", "c++", "-std=c++17", "-DDIFFSEG_CPU", "-DDIFFSEG_CPU_THREADS", *build.STRICT]
    must([*C99, *flags, "-c", TINY, "-o", folder / "tiny.o"])
    for name, body in (("plain", []), ("tensor", ["-DDIFFSEG_CPU_TENSOR"])):
        must(["g++", *flags, *kernels, *body, "-c", SOURCES / "diffseg.cu", "-o", folder / "diffseg.o"])
        must(["g++", *flags, folder / "tiny.o", folder / "diffseg.o", "-o", folder / name, "-pthread"])
    return folder


def run_racing(racing, *arguments):
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    return run([racing, *arguments], env=environment, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("body", ["plain", "tensor"])
def test_no_races(racing, body):
    code, output = run_racing(racing / body)
    assert (code, output) == (0, "ok, 2 segments, 0 wrong\n")


@pytest.mark.slow
@pytest.mark.parametrize("body", ["plain", "tensor"])
@pytest.mark.parametrize(("name", "number"), BARRIERS[:-1])
def test_every_barrier_is_needed(racing, name, number, body):
    """Without it there is a race, and ThreadSanitizer reports it: so the test above means something."""
    code, output = run_racing(racing / body, number)
    assert code == 66, output
    assert "data race" in output


def test_every_barrier_is_tested():
    assert BARRIERS[-1] == ("BARRIERS", str(len(BARRIERS) - 1))
    used = set(re.findall(r"DIFFSEG_BARRIER\(([A-Z_]+)\)", "".join(p.read_text() for p in SOURCES.glob("*.cuh"))))
    assert used == {name for name, _ in BARRIERS[:-1]}


def test_every_kernel_is_loaded_ahead():
    """By `diffseg_create`: CUDA would load a kernel at its first launch, which may be in a capture."""
    kernels = "".join(path.read_text() for path in SOURCES.glob("*.cuh"))
    declared = set(re.findall(r"__global__ void __launch_bounds__\([^)]*\)\s+(\w+)\(", kernels))
    assert len(declared) == kernels.count("__global__") == 12
    assert declared == set(re.findall(r"loadable\((\w+)", (SOURCES / "sequence.h").read_text()))


@pytest.mark.slow
def test_compiles_for_every_gpu(tmp_path):
    """Warnings are errors; the library loads without a driver, says so, and refuses what is wrong."""
    try:
        build.find_nvcc()
    except DiffSegError as error:
        pytest.skip(str(error))
    path = build.build_library(tmp_path / build.NAME, strict=True)
    library = Library(path)
    assert library.built.startswith(f"{build.source_hash()}_sm75_sm80_") and library.built.endswith("_ptx100_ptx120")
    assert library.backend == "cuda"
    config, handle = Config(), ctypes.c_void_p()
    assert library.c.diffseg_create(ctypes.byref(config), None, 0, ctypes.byref(handle)) == 8


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed")
def test_cmake_package(tmp_path):
    """Installed, found by find_package, linked statically and shared, run; hardened, as some compilers build."""
    consumer = tmp_path / "consumer"
    consumer.mkdir()
    (consumer / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(consumer LANGUAGES C CXX)\n"
        "find_package(diffseg 3 REQUIRED)\nadd_executable(tiny tiny.c)\n"
        "target_link_libraries(tiny PRIVATE diffseg::diffseg)\n"
        "set_target_properties(tiny PROPERTIES LINKER_LANGUAGE CXX)\n"
    )
    shutil.copy(TINY, consumer)
    for shared in ("ON", "OFF"):
        made, there = tmp_path / f"build {shared}", tmp_path / f"installed {shared}"
        options = [
            "-DDIFFSEG_CPU=ON",
            "-DDIFFSEG_STRICT=ON",
            "-DCMAKE_BUILD_TYPE=Debug",
            "-DCMAKE_CXX_FLAGS=-O1 -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2",
            f"-DBUILD_SHARED_LIBS={shared}",
            f"-DCMAKE_INSTALL_PREFIX={there}",
        ]
        must(["cmake", "-S", SOURCES, "-B", made, *options])
        must(["cmake", "--build", made])
        must(["cmake", "--install", made])
        must(["cmake", "-S", consumer, "-B", made / "consumer", f"-DCMAKE_PREFIX_PATH={there}"])
        must(["cmake", "--build", made / "consumer"])
        assert must([made / "consumer" / "tiny"]) == "ok, 2 segments, 0 wrong\n"
    version = re.search(r"DIFFSEG_ABI_VERSION (\d+)", (SOURCES / "diffseg.h").read_text())[1]
    assert list((tmp_path / "installed ON").rglob(f"{build.NAME}.{version}"))


# Finding and loading.


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A cache of its own, and nothing in the package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(build, "HERE", tmp_path / "package")
    monkeypatch.setattr(build, "TOOLKIT", tmp_path / "toolkit")
    return tmp_path


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_where_the_library_is_looked_for(alone, monkeypatch, caplog):
    engine = alone / "engines" / "sd15.plan"
    assert build.find_library(engine, 87) is None
    everything = touch(build.cached_library(build.ARCHITECTURES))
    assert build.find_library(engine, 87) == everything
    own = touch(build.cached_library([87]))
    assert build.find_library(engine, 87) == own
    assert build.find_library(engine, 90) == everything
    package = touch(alone / "package" / build.NAME)
    assert build.find_library(engine, 87) == package
    beside = touch(engine.parent / build.NAME)
    assert build.find_library(engine, 87) == package  # loading it would run the code of whoever made the engine
    assert "is not loaded" in caplog.text and str(beside) in caplog.text
    monkeypatch.setenv("DIFFSEG_LIBRARY", "beside")
    assert build.find_library(engine, 87) == beside
    assert build.find_library(None, 87) == package
    monkeypatch.setenv("DIFFSEG_LIBRARY", str(own))
    assert build.find_library(engine, 87) == own
    monkeypatch.setenv("DIFFSEG_LIBRARY", str(alone / "none.so"))
    with pytest.raises(DiffSegError, match=r"DIFFSEG_LIBRARY: expected a library .*none\.so"):
        build.find_library(engine, 87)


def test_cache_changes_with_the_sources(tmp_path, monkeypatch):
    before = build.source_hash()
    copy = tmp_path / "native"
    shutil.copytree(SOURCES, copy)
    monkeypatch.setattr(build, "HERE", copy)
    assert build.source_hash() == before
    (copy / "tile.cuh").write_text((copy / "tile.cuh").read_text() + "\n")
    assert build.source_hash() != before


def test_without_a_driver(monkeypatch):
    def absent():
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(probe, "open_driver", absent)
    with pytest.raises(
        DiffSegError, match=r"needs an NVIDIA GPU and its driver, found none \(libcuda.*use device='cpu'"
    ):
        probe.check_driver()


class Driver:
    """A driver with `count` GPUs of compute capability 8.7."""

    def __init__(self, count):
        self.count = count

    def cuInit(self, flags):
        return 0 if self.count else 100

    def cuDeviceGetCount(self, count):
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, handle, device):
        handle._obj.value = device
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0


def test_driver_without_a_gpu(monkeypatch):
    probe.driver_architecture.cache_clear()
    monkeypatch.setattr(probe, "open_driver", lambda: Driver(0))
    with pytest.raises(DiffSegError, match="its driver is installed, but finds none"):
        segment_attention([np.eye(64, dtype=np.float32)], MergeConfig(grid=4), size=(8, 8), device="cuda")


def test_gpu_but_no_compiler(alone, monkeypatch):
    probe.driver_architecture.cache_clear()
    monkeypatch.setattr(probe, "open_driver", lambda: Driver(1))
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DiffSegError, match=r"no CUDA compiler: nvcc is not on PATH.*DIFFSEG_LIBRARY"):
        native.load(0)
    with pytest.raises(DiffSegError, match="'cuda:3': expected cuda:0 to cuda:0"):
        native.load(3)
    probe.driver_architecture.cache_clear()


def test_nvcc_of_cuda_home(alone, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setenv("CUDA_HOME", str(alone / "cuda"))
    program = touch(alone / "cuda" / "bin" / "nvcc")
    assert build.find_nvcc() == program


def test_nvcc_of_the_toolkit_that_is_not_on_path(alone, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    program = touch(alone / "toolkit" / "nvcc")
    assert build.find_nvcc() == program


@pytest.fixture
def old_nvcc(tmp_path):
    """A compiler of CUDA 12.6, as JetPack 6 has it."""
    program = tmp_path / "nvcc"
    program.write_text(
        '#!/bin/sh\ncase "$1" in\n--version) echo "Cuda compilation tools, release 12.6, V12.6.68";;\n'
        "--list-gpu-code) printf 'sm_75\\nsm_80\\nsm_87\\nsm_90\\nsm_90a\\n';;\nesac\n"
    )
    program.chmod(0o755)
    return program


def test_architectures_that_the_compiler_knows(old_nvcc):
    assert nvcc.release(old_nvcc) == (12, 6)
    assert nvcc.choose_architectures(old_nvcc, build.ARCHITECTURES) == ([75, 80, 87, 90], [87, 90])
    assert nvcc.choose_architectures(old_nvcc, [87]) == ([87], [87])
    assert nvcc.choose_architectures(old_nvcc, [120]) == ([], [90])  # the driver of a newer card compiles that
    with pytest.raises(DiffSegError, match=r"builds for the architectures 75, 80, 87, 90, found --arch 50; choose"):
        nvcc.choose_architectures(old_nvcc, [50])
    assert nvcc.choose_architectures(Path("/no/nvcc"), [120]) == ([120], [120])


def test_driver_that_is_older_than_the_compiler(old_nvcc, monkeypatch):
    """Said before anything is built."""
    for driver in ((12, 2), (13, 0), None):
        nvcc.check_driver_version(old_nvcc, driver)
    monkeypatch.setattr(build, "find_nvcc", lambda: old_nvcc)
    monkeypatch.setattr(build, "build_library", lambda *_: pytest.fail("built"))
    with pytest.raises(
        DiffSegError, match=r"builds for drivers of CUDA 12, found one of CUDA 11.4; .* to 525 or newer"
    ):
        build.build_for_gpu(87, (11, 4))
    driver = Driver(1)
    monkeypatch.setattr(probe, "open_driver", lambda: driver)
    assert probe.driver_cuda() is None
    driver.cuDriverGetVersion = lambda version: setattr(version._obj, "value", 12040)
    assert probe.driver_cuda() == (12, 4)


def test_library_beside_an_engine_is_checked(cpu_library, tmp_path, monkeypatch):
    engine, path = tmp_path / "unet.plan", tmp_path / build.NAME
    own = build.source_hash()
    assert cpu_library.built == own
    for built in (own, f"{own}_sm80_sm87", f"{own}_sm86_ptx86", f"{own}_sm120_ptx80"):
        build.check_beside(path, built, engine, 87)
    for built in ("", "0123456789ab_sm87"):
        with pytest.raises(
            DiffSegError, match=rf"built from other sources: expected {own}, found .*--arch 87 --output"
        ):
            build.check_beside(path, built, engine, 87)
        build.check_beside(tmp_path / "elsewhere" / build.NAME, built, engine, 87)
    with pytest.raises(DiffSegError, match=r"no code for a GPU of architecture 87, found sm90, ptx90; build it again"):
        build.check_beside(path, f"{own}_sm90_ptx90", engine, 87)


def test_nvcc_of_the_wheel(alone, monkeypatch):
    """Found in the wheel's folders, and told where the wheel keeps the CUDA runtime."""
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    spec = SimpleNamespace(submodule_search_locations=[str(alone / "nvidia")])
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: spec)
    program = touch(alone / "nvidia" / "cu13" / "bin" / "nvcc")
    touch(alone / "nvidia" / "cu13" / "lib" / "libcudart_static.a")
    assert build.find_nvcc() == program
    monkeypatch.setattr(build, "_compile", lambda command, target: command)
    command = build.build_library(alone / build.NAME, [87])
    assert command[0] == str(program)
    assert f"-L{alone / 'nvidia' / 'cu13' / 'lib'}" in command


def test_compiler_that_fails(alone):
    with pytest.raises(DiffSegError, match=r"failed: .*no_such_option"):
        build.build_cpu_library(alone / build.NAME, ["-no_such_option"])
    assert list(alone.iterdir()) == []


def test_cache_that_cannot_be_written(alone, monkeypatch):
    touch(alone / "cache")
    with pytest.raises(DiffSegError, match=r"cannot be built \(.*--output DIR.*XDG_CACHE_HOME"):
        build.build_cpu_library(build.cached_library([], cpu=True))
    monkeypatch.setenv("CXX", "/no/compiler")
    with pytest.raises(DiffSegError, match=r"cannot be built .*'/no/compiler'"):
        build.build_cpu_library(alone / build.NAME)


def test_not_a_library(tmp_path):
    with pytest.raises(DiffSegError, match="is not a library of this merge core"):
        Library(touch(tmp_path / build.NAME))


@pytest.mark.parametrize("arch", ["orin", "12", "87,-3"])
def test_build_command_refuses(arch):
    """That it builds is what the fixture `cpu_library` shows."""
    command = [sys.executable, "-m", "runtime.native", "build", "--arch", arch]
    code, output = run(command, cwd=SOURCES.parents[1])
    assert (code, output) == (2, f"--arch: expected numbers from 75 on, such as 87 or 80,90, found '{arch}'\n")


# Arrays on a GPU; here the CPU build's "device memory" is the host's.


QUEUED = ("run", "check")


class OnDevice:
    """What CuPy and others offer."""

    def __init__(self, array, strides=None):
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": strides,
            "version": 3,
        }


def test_arrays_are_read_where_they_lie(cpu_library):
    pyramid = random_pyramid(np.random.default_rng(0), [(16, 16), (8, 8)])
    config = MergeConfig((0.2,) * 2, 8)
    expected = native.segment(pyramid, config, (32, 32), library=cpu_library)
    there = [OnDevice(level) for level in pyramid]
    np.testing.assert_array_equal(native.segment(there, config, (32, 32), library=cpu_library), expected)
    with pytest.raises(ValueError, match="found both"):
        native.segment([there[0], pyramid[1]], config, (32, 32), library=cpu_library)
    mixed = [there[0], OnDevice(pyramid[1].astype(np.float16))]
    with pytest.raises(ValueError, match="expected one type for all levels, found float16, float32"):
        native.segment(mixed, config, (32, 32), library=cpu_library)
    with pytest.raises(ValueError, match=r"pyramid\[0\]: expected maps"):
        native.segment([OnDevice(pyramid[0][:10])], config, (32, 32), library=cpu_library)
    with pytest.raises(ValueError, match=r"pyramid\[0\]: expected a contiguous array on the GPU"):
        native.segment([OnDevice(pyramid[0], (4, 1024))], config, (32, 32), library=cpu_library)
    with pytest.raises(ValueError, match=r"pyramid\[0\]: expected float32.*found <f8"):
        native.segment([OnDevice(pyramid[0].astype(float))], config, (32, 32), library=cpu_library)


def test_streams_of_arrays(cpu_library, monkeypatch):
    """The kernels follow what writes the maps: on the first array's stream, after the others have been waited for."""
    pyramid = random_pyramid(np.random.default_rng(0), [(16, 16), (8, 8)])
    config = MergeConfig((0.2,) * 2, 8)
    there = [OnDevice(level) for level in pyramid]
    calls, call = [], Library.call
    monkeypatch.setattr(Library, "call", lambda self, *words: (calls.append(words), call(self, *words)))
    for streams, expected in (((7, 7), [("run", 7)]), ((7, 9), [("check", 9), ("run", 7)]), ((None, 7), None)):
        for array, stream in zip(there, streams, strict=True):
            array.__cuda_array_interface__["stream"] = stream
        calls.clear()
        native.segment(there, config, (32, 32), library=cpu_library)
        queued = [(words[0], words[3] if words[0] == "run" else words[2]) for words in calls if words[0] in QUEUED]
        assert queued[:-1] == (expected or [("check", 7), ("run", 0)])


class OrtValue:
    """What ONNX Runtime's IOBinding gives."""

    def __init__(self, array, kind="tensor(float)", device="cuda"):
        self.array, self.kind, self.device = array, kind, device

    def data_ptr(self):
        return self.array.ctypes.data

    def shape(self):
        return list(self.array.shape)

    def data_type(self):
        return self.kind

    def device_name(self):
        return self.device


def test_values_of_onnx_runtime(cpu_library):
    pyramid = random_pyramid(np.random.default_rng(0), [(16, 16), (8, 8)])
    config = MergeConfig((0.2,) * 2, 8)
    expected = native.segment(pyramid, config, (32, 32), library=cpu_library)
    found = native.segment([OrtValue(level) for level in pyramid], config, (32, 32), library=cpu_library)
    np.testing.assert_array_equal(found, expected)
    assert device_array(OrtValue(pyramid[0], device="cpu"), "pyramid[0]") is None
    with pytest.raises(ValueError, match=r"found tensor\(double\); convert it first"):
        device_array(OrtValue(pyramid[0], "tensor(double)"), "pyramid[0]")


def test_dlpack_capsules():
    """NumPy's capsules are the same structs, but for the device they name."""
    for dtype in ("float32", "float16"):
        array = np.ones((3, 4, 4), dtype)
        found = from_capsule(array.__dlpack__(), "pyramid[0]")
        assert (found.pointer, found.shape, found.dtype) == (array.ctypes.data, (3, 4, 4), dtype)
    with pytest.raises(ValueError, match="contiguous"):
        from_capsule(np.ones((4, 4), np.float32).T[:, :2].__dlpack__(), "pyramid[0]")
    with pytest.raises(ValueError, match="DLPack type 2 of 64 bits"):
        from_capsule(np.ones((4, 4)).__dlpack__(), "pyramid[0]")
    assert device_array(np.ones(3), "pyramid[0]") is None


def test_importing_it_loads_nothing():
    code = "import runtime.native, sys; print({'numpy', 'ctypes', 'torch'} & set(sys.modules))"
    assert must([sys.executable, "-c", code], cwd=SOURCES.parents[1]) == "set()\n"

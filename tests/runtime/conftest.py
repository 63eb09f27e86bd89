"""The native library, built once: its CPU build everywhere, the real one where there is a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import native
from runtime.errors import DiffSegError
from runtime.gpu import probe
from runtime.native import build
from tests.runtime.clips import stand_in  # noqa: F401 - a fixture

ROOT = Path(__file__).parents[2]
GIVEN = "DIFFSEG_TEST_LIBRARY"  # environment variable
SLOW_TENSOR = pytest.param("tensor", marks=pytest.mark.slow)


def _built_once(request, name, make):
    """A library of these sources from pytest's cache, where an earlier run may have left it."""
    path = request.config.cache.mkdir(f"native-{build.source_hash()}-{name}") / build.NAME
    if not path.is_file():
        make(path)
    return native.load(path=path)


@pytest.fixture(scope="session")
def cpu_library(request):
    """Built by the command that people use; `python -m tools.sanitize` names one of its own."""
    if GIVEN in os.environ:
        return native.load(path=Path(os.environ[GIVEN]))

    def make(path):
        command = [sys.executable, "-m", "runtime.native", "build", "--cpu", "--output", str(path.parent)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"{path}\n"), done.stderr

    return _built_once(request, "cpu", make)


@pytest.fixture(scope="session")
def tensor_library(request):
    """Also for the CPU, with the tensor-core body of the tile product on an emulated instruction."""
    return _built_once(request, "tensor", lambda path: build.build_cpu_library(path, ["-DDIFFSEG_CPU_TENSOR"]))


@pytest.fixture(scope="session")
def cuda_library():
    try:
        probe.check_driver()
    except DiffSegError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    return native.load()


@pytest.fixture(scope="session", params=["cpu", SLOW_TENSOR, pytest.param("cuda", marks=pytest.mark.gpu)])
def library(request):
    """The same tests on all."""
    return request.getfixturevalue(f"{request.param}_library")

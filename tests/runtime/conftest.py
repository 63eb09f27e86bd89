"""The native library, built once: its CPU build everywhere, the real one where there is a GPU."""

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


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory):
    """Built by the command that people use."""
    folder = tmp_path_factory.mktemp("native")
    command = [sys.executable, "-m", "runtime.native", "build", "--cpu", "--output", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{folder / build.NAME}\n"), done.stderr
    return native.load(path=folder / build.NAME)


@pytest.fixture(scope="session")
def cuda_library():
    try:
        probe.check_driver()
    except DiffSegError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    return native.load()


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def library(request):
    """The same tests on both."""
    return request.getfixturevalue(f"{request.param}_library")

"""The native library, built once: its CPU build everywhere, the real one where there is a GPU."""

import pytest

from runtime import native
from runtime.errors import DiffSegError
from runtime.native import build


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory):
    return native.load(path=build.build_cpu_library(tmp_path_factory.mktemp("native") / build.NAME))


@pytest.fixture(scope="session")
def cuda_library():
    try:
        build.check_driver()
    except DiffSegError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    return native.load()


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def library(request):
    """The same tests on both."""
    return request.getfixturevalue(f"{request.param}_library")

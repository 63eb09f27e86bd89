"""Fixtures shared by all tests: a small random pipeline of Stable Diffusion's shape, its engine, engines kept open."""

from copy import copy
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Fixtures that trace a network or compile a program: they take so long that every test that asks for one is slow.
EXPENSIVE = {"small_engine", "labels_engine", "reference_head", "odd_head", "programs"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Before pytest reads `-m`. Proofs are left out unless it names them."""
    for item in items:
        if EXPENSIVE & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    if "proof" not in config.getoption("-m"):
        proofs = [item for item in items if item.get_closest_marker("proof")]
        config.hook.pytest_deselected(items=proofs)
        items[:] = [item for item in items if not item.get_closest_marker("proof")]


@pytest.fixture(scope="session")
def embedded_engines():
    """Opens the embedded engine, and each combination of options once."""
    from runtime.engine.registry import EMBEDDED, open_engine

    return cache(lambda device, backend, options: open_engine(EMBEDDED, device, backend, **dict(options)))


@pytest.fixture
def embedded_stays_open(embedded_engines, monkeypatch):
    """An embedded engine that another test opened is not opened again: that takes longer than several frames."""
    from runtime.engine import registry

    open_engine = registry.open_engine

    def opened(path=None, device="auto", backend=None, **options):
        if path not in (None, registry.EMBEDDED):
            return open_engine(path, device, backend, **options)
        given = {name: value for name, value in options.items() if value is not None}
        engine = embedded_engines(device, backend, tuple(sorted(given.items()))).clone()
        engine.spec = copy(engine.spec)  # some tests change it
        return engine

    monkeypatch.setattr(registry, "open_engine", opened)
    monkeypatch.setattr("runtime.segmenter.open_engine", opened)


@pytest.fixture(scope="session")
def small_pipeline(tmp_path_factory):
    """A diffusers folder: 4 U-Net levels, attention at all four resolutions, random weights, uneven maps."""
    from tools.tiny.random_pipelines import save_random_pipeline

    return save_random_pipeline(tmp_path_factory.mktemp("models") / "small pipeline")


@pytest.fixture(scope="session")
def least_pipeline(tmp_path_factory):
    """A diffusers folder of two levels, of which one has attention: quick to trace."""
    from tools.tiny.random_pipelines import save_random_pipeline

    return save_random_pipeline(tmp_path_factory.mktemp("models") / "least", "least")


@pytest.fixture(scope="session")
def small_engine(small_pipeline, tmp_path_factory):
    """The attention engine of `small_pipeline` for frames of 128×192, dynamic batch."""
    from export.engine import ExportRequest, export_engine

    path = tmp_path_factory.mktemp("engines") / "small.onnx"
    export_engine(ExportRequest(model=str(small_pipeline), size=(128, 192), batch=None, thresholds=(0.3, 0.2)), path)
    return path

"""Fixtures shared by all tests: a small random pipeline of Stable Diffusion's shape, and its engine."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def small_pipeline(tmp_path_factory):
    """A diffusers folder: 4 U-Net levels, attention at all four resolutions, random weights, uneven maps."""
    from tools.tiny.random_pipelines import save_random_pipeline

    return save_random_pipeline(tmp_path_factory.mktemp("models") / "small pipeline")


@pytest.fixture(scope="session")
def small_engine(small_pipeline, tmp_path_factory):
    """The attention engine of `small_pipeline` for frames of 128×192, dynamic batch."""
    from export.engine import ExportRequest, export_engine

    path = tmp_path_factory.mktemp("engines") / "small.onnx"
    export_engine(ExportRequest(model=str(small_pipeline), size=(128, 192), batch=None, thresholds=(0.3, 0.2)), path)
    return path

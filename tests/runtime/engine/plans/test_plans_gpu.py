"""What only a GPU can show: plans that were built here run here, and give the CPU's maps and labels."""

import importlib.util
import threading

import cv2
import numpy as np
import pytest

from export.check.labels import differing_when_matched
from export.check.maps import mean_divergence, random_frame
from export.engine import ExportRequest, export_engine
from export.plan.build import PlanRequest, build_plan
from export.progress import Phases
from runtime import DiffSegError, Segmenter
from runtime.engine.registry import EMBEDDED, open_engine
from runtime.gpu import probe
from tests.conftest import ROOT

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="session", autouse=True)
def gpu():
    """Of the session, so that a machine without a GPU skips before it exports an engine for these tests."""
    try:
        probe.check_driver()
    except DiffSegError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def flavour(request):
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def built(engine, folder, flavour, **options):
    """The engine's plan on the GPU; skipped where TensorRT-RTX does not know the card."""
    path = folder / f"{engine.stem}-{flavour}.plan"
    build_plan(engine, path, PlanRequest(flavour=flavour, **options), Phases())
    try:
        return open_engine(path, "cuda")
    except DiffSegError as error:
        if "unsupported cc" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def tiny(flavour, tmp_path_factory):
    return built(EMBEDDED, tmp_path_factory.mktemp("plans"), flavour)


@pytest.fixture(scope="module")
def frame():
    return cv2.imread(str(ROOT / "tools" / "pictures" / "scene.png"))


def test_maps_and_labels_are_the_cpus(tiny, frame):
    here = Segmenter.open(device="cpu", backend="onnxruntime", thresholds=0.5, pieces="keep")
    there = Segmenter(tiny)
    batch = here.resize(frame)[None]
    for _ in range(2):  # as it is, and as a graph
        for found, expected in zip(tiny.infer(batch), here.engine.infer(batch), strict=True):
            assert mean_divergence(found, expected) <= 1e-6
    assert np.mean(there(frame).labels != here(frame).labels) <= 0.001
    detailed = there(frame, details=True)
    np.testing.assert_allclose(detailed.attention, here(frame, details=True).attention, rtol=1e-2, atol=1e-6)


def test_clone_in_another_thread(tiny):
    frames = [random_frame(256, 256, seed)[None] for seed in range(4)]
    expected = [tiny.infer(each)[0] for each in frames]
    clone, found = tiny.clone(), []
    thread = threading.Thread(target=lambda: found.extend(clone.infer(each)[0] for each in frames))
    thread.start()
    again = [tiny.infer(each)[0] for each in frames]
    thread.join()
    for one, two, three in zip(expected, found, again, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_prefetched_frames_give_the_same(tiny):
    frames = [random_frame(256, 256, seed)[None] for seed in range(5)]
    expected = [tiny.infer(each)[0] for each in frames]
    for index, each in enumerate(frames):
        maps = tiny.infer_on_device(each)
        tiny.prefetch(frames[(index + 1) % len(frames)])  # while the maps still lie there
        np.testing.assert_array_equal(tiny._runner.to_host(maps)[0], expected[index])


def test_dynamic_batch(flavour, small_engine, tmp_path):
    engine = built(small_engine, tmp_path, flavour, profile=(1, 2, 3))
    here = open_engine(small_engine, "cpu", "onnxruntime")
    frames = np.stack([random_frame(128, 192, seed) for seed in range(3)])
    for count in (1, 3, 2):
        for found, expected in zip(engine.infer(frames[:count]), here.infer(frames[:count]), strict=True):
            assert mean_divergence(found, expected) <= 1e-6


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_labels_head(flavour, small_pipeline, tmp_path, precision):
    path = tmp_path / "labels.onnx"
    request = ExportRequest(model=str(small_pipeline), size=(128, 192), head="labels", thresholds=(0.8, 0.75), grid=12)
    export_engine(request, path, check=False)
    frames = random_frame(128, 192)[None]
    expected = open_engine(path, "cpu", "onnxruntime").infer(frames)
    if precision != "fp32":
        from dataclasses import replace

        export_engine(replace(request, precision=precision), path, check=False)
    engine = built(path, tmp_path, flavour)
    for _ in range(2):
        labels = engine.infer(frames)[0]
        assert labels.dtype == expected[0].dtype
        assert differing_when_matched(labels, expected[0]) <= (0.001 if precision == "fp32" else 0.02)


def test_onnxruntime_leaves_maps_on_the_gpu(frame):
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA: pip install 'diffseg[gpu]'")
    here = Segmenter.open(device="cpu", backend="onnxruntime")
    there = Segmenter.open(device="cuda", backend="onnxruntime")
    assert there.engine.on_device
    assert all(level.pointer for level in there.engine.infer_on_device(here.resize(frame)[None]))
    assert np.mean(there(frame).labels != here(frame).labels) <= 0.001

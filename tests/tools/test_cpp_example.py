"""The C++ programs build from this repository and give Python's labels."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import openvino
import pytest

from runtime.engine import open_engine
from runtime.merge import MergeConfig, segment_attention
from tests.runtime.test_merge import random_pyramid

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed")


def run(*command):
    """Output of a program, with OpenVINO's libraries where it looks for them."""
    libraries = Path(openvino.__path__[0], "libs")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpp")
    options = [
        "-DDIFFSEG_CPU=ON",
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror",
        f"-DOpenVINO_DIR={Path(openvino.__path__[0], 'cmake')}",
    ]
    for command in (
        ["cmake", "-S", ROOT / "tools" / "cpp_example", "-B", folder, *options],
        ["cmake", "--build", folder],
    ):
        code, output = run(*command)
        assert code == 0, output
    return folder


@pytest.fixture(params=["engine_labels", "engine_labels_ort"])
def engine_program(request, programs):
    """The program of each library; ONNX Runtime's C++ headers are in no wheel, so CI may not have them."""
    program = programs / request.param
    if request.param == "engine_labels_ort" and not program.exists():
        pytest.skip("ONNX Runtime's C++ package is not installed: name it in CMAKE_PREFIX_PATH")
    return program


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_attention_labels(programs, tmp_path, dtype):
    grids = [(16, 24), (8, 12)]
    pyramid = random_pyramid(np.random.default_rng(0), grids, dtype=dtype)
    words = []
    for (h, w), level in zip(grids, pyramid, strict=True):
        np.save(tmp_path / f"{h}.npy", level)
        words.append(f"{h}x{w}={tmp_path / f'{h}.npy'}")
    code, output = run(programs / "attention_labels", tmp_path / "labels.npy", "64x96", 8, "0.3,0.2", *words)
    assert code == 0, output
    expected = segment_attention(pyramid, MergeConfig((0.3, 0.2), 8), size=(64, 96), grids=grids)
    labels = np.load(tmp_path / "labels.npy")
    assert labels.dtype == np.uint16
    assert len(np.unique(expected)) > 3
    assert np.mean(labels != expected) <= 0.001
    assert output == f"{expected.max() + 1} proposals\n"


def test_attention_labels_says_what_is_wrong(programs, tmp_path):
    np.save(tmp_path / "maps.npy", np.full((64, 64), np.nan, np.float32))
    program, maps = programs / "attention_labels", f"8x8={tmp_path / 'maps.npy'}"
    out = tmp_path / "labels.npy"
    code, output = run(program, out, "8x8", 4, "1", maps)
    assert code == 1
    assert "frame 0 of the batch: maps have a NaN" in output
    code, output = run(program, out, "8x8", 9, "1", maps)
    assert code == 1
    assert "anchors: expected 2 to 8 per axis, found 9" in output
    code, output = run(program, out, "8x8", 4, "1", f"8x9={tmp_path / 'maps.npy'}")
    assert code == 1
    assert "expected maps [h*w, h*w]" in output
    assert run(program)[0] == 2
    assert not out.exists()


@pytest.fixture(scope="module")
def labels_engine(small_pipeline, tmp_path_factory):
    from export.engine import ExportRequest, export_engine

    path = tmp_path_factory.mktemp("engines") / "labels.onnx"
    request = ExportRequest(model=str(small_pipeline), size=(128, 192), head="labels", thresholds=(0.8, 0.75), grid=12)
    export_engine(request, path, check=False)  # checked where it is tested; here any labels will do
    return path


def test_engine_labels(engine_program, labels_engine, tmp_path):
    """A picture as PPM and the same frame as .npy, against Python's OpenVINO on the same engine."""
    frame = np.random.default_rng(0).integers(0, 256, (128, 192, 3), np.uint8)
    np.save(tmp_path / "frame.npy", frame)
    (tmp_path / "frame.ppm").write_bytes(b"P6\n192 128\n255\n" + frame[..., ::-1].tobytes())
    # As the programs do it: left alone, Python's OpenVINO is in bfloat16 where the CPU has units for that.
    labels, segments = open_engine(labels_engine, "cpu", "openvino", precision="fp32").infer(frame[None])
    for name in ("frame.npy", "frame.ppm"):
        out = tmp_path / "labels.npy"
        code, output = run(engine_program, labels_engine, tmp_path / name, out, "0.8,0.75")
        assert (code, output) == (0, f"{segments[0]} proposals\n")
        assert segments[0] > 1
        assert np.mean(np.load(out) != labels[0]) <= 0.001


def test_engine_labels_says_what_is_wrong(engine_program, labels_engine, tmp_path):
    program = engine_program
    np.save(tmp_path / "frame.npy", np.zeros((100, 100, 3), np.uint8))
    code, output = run(program, labels_engine, tmp_path / "frame.npy", tmp_path / "labels.npy", "0.8,0.75")
    assert code == 1
    assert "resize the picture first" in output
    np.save(tmp_path / "frame.npy", np.zeros((128, 192, 3), np.uint8))
    code, output = run(program, labels_engine, tmp_path / "frame.npy", tmp_path / "labels.npy", "0.8")
    assert code == 1
    assert "expected 2 thresholds, one per iteration" in output

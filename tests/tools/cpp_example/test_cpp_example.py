"""The C++ programs build from this repository and give Python's labels of the same picture."""

import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import openvino
import pytest
import skimage.data

from runtime.engine.registry import EMBEDDED
from runtime.hosts.engine.labels import write_labels_engine
from runtime.merge.segment import segment_attention
from runtime.merge.suppress import renumber
from runtime.pyramid.config import MergeConfig
from runtime.segmenter import Segmenter
from tests.runtime.bands import write_engine
from tests.runtime.merge.plain import random_pyramid

ROOT = Path(__file__).parents[3]
GRIDS = [(24, 36), (12, 18)]
pytestmark = pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed")


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    return done.returncode, done.stdout + done.stderr


def one_line(code, output, expected_code, *parts):
    assert code == expected_code, output
    assert output.count("\n") == 1, output
    for part in parts:
        assert part in output


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpp")
    options = [
        "-DDIFFSEG_CPU=ON",
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror",
        f"-DOpenVINO_DIR={Path(openvino.__path__[0], 'cmake')}",
    ]
    code, output = run("cmake", "-S", ROOT / "tools" / "cpp_example", "-B", folder, *options)
    if "OpenCV for C++ was not found" in output:
        pytest.skip("OpenCV for C++ is not installed: apt-get install libopencv-{core,imgproc,imgcodecs}-dev")
    assert code == 0, output
    code, output = run("cmake", "--build", folder)
    assert code == 0, output
    return folder


@pytest.fixture(params=["engine_labels", "engine_labels_ort"])
def engine_program(request, programs):
    """The program of each library; ONNX Runtime's C++ headers are in no wheel, so CI may not have them."""
    program = programs / request.param
    if request.param == "engine_labels_ort" and not program.exists():
        pytest.skip("ONNX Runtime's C++ package is not installed: name it in CMAKE_PREFIX_PATH")
    return program


@pytest.fixture
def picture(tmp_path):
    """A part of a photograph, wider and lower than the engine's 128x192: one axis shrinks and the other grows.

    Nearest pixels are unique but in one row: of two that are equally near, OpenCV 4 takes one and OpenCV 5 the other.
    """
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), skimage.data.astronaut()[20:145, 90:410, ::-1])
    return path


def check_outputs(picture, labels, overlay, expected, output):
    """Labels as `python -m runtime.segment` writes them, and an overlay that shows both."""
    frame, found, drawn = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (picture, labels, overlay))
    count = expected.max() + 1
    assert output == f"{count} segments\n"
    assert count > 3
    assert found.dtype == (np.uint8 if count <= 256 else np.uint16)
    assert found.shape == frame.shape[:2]
    assert np.mean(found != expected) <= 0.001
    assert drawn.shape == frame.shape
    # What is over the picture is one colour a segment, and more than one colour in all.
    colours = 2 * drawn[found == expected].astype(int) - frame[found == expected]
    means = np.array([colours[expected[found == expected] == label].mean(0) for label in range(count)])
    assert np.abs(colours - means[expected[found == expected]]).max() <= 3
    assert len(np.unique(means.round(-1), axis=0)) > 3


def attention_words(folder, pyramid):
    for (h, _), level in zip(GRIDS, pyramid, strict=True):
        np.save(folder / f"{h}.npy", level)
    return [f"{h}x{w}={folder / f'{h}.npy'}" for h, w in GRIDS]


@pytest.mark.parametrize(
    ("dtype", "anchors", "thresholds", "bits"), [(np.float32, 8, (0.3, 0.2), 8), (np.float16, 20, (1e-30,), 16)]
)
def test_attention_labels(programs, picture, tmp_path, dtype, anchors, thresholds, bits):
    """Few segments, and so many that a byte does not hold their numbers."""
    pyramid = random_pyramid(np.random.default_rng(0), GRIDS, dtype=dtype)
    outputs = tmp_path / "labels.png", tmp_path / "overlay.png"
    words = [anchors, ",".join(map(str, thresholds)), picture, *outputs, *attention_words(tmp_path, pyramid)]
    code, output = run(programs / "attention_labels", *words)
    assert code == 0, output
    expected, _ = renumber(segment_attention(pyramid, MergeConfig(thresholds, anchors), size=(125, 320), grids=GRIDS))
    check_outputs(picture, *outputs, expected, output)
    assert cv2.imread(str(outputs[0]), cv2.IMREAD_UNCHANGED).dtype.itemsize * 8 == bits


def test_attention_labels_says_what_is_wrong(programs, picture, tmp_path):
    maps, cut, out = tmp_path / "maps.npy", tmp_path / "cut.npy", tmp_path / "labels.png"
    np.save(maps, np.full((64, 64), np.nan, np.float32))
    cut.write_bytes(maps.read_bytes()[:-1])
    np.save(tmp_path / "double.npy", np.ones((64, 64)))
    for word, anchors, code, message in (
        (f"8x8={maps}", 4, 1, "frame 0 of the batch: maps have a NaN"),
        (f"8x8={maps}", 9, 1, "anchors: expected 2 to 8 per axis, found 9"),
        (f"8x8={maps}", "x", 1, "anchors: expected 2 to 8 per axis, found 0"),
        (f"8x9={maps}", 4, 1, "expected maps [h*w, h*w], found [64, 64]"),
        (f"8x8={cut}", 4, 1, "cut.npy: the file ends too early"),
        (f"8x8={tmp_path / 'double.npy'}", 4, 1, "double.npy: expected a .npy of float32 or float16 maps"),
        (f"8x8={picture}", 4, 1, "picture.png: expected a .npy"),
        (f"8x8={tmp_path / 'none.npy'}", 4, 1, "none.npy: cannot be read"),
        (f"8by8={maps}", 4, 2, "expected HEIGHTxWIDTH=MAPS.npy, found 8by8="),
    ):
        found = run(programs / "attention_labels", anchors, "1", picture, out, tmp_path / "overlay.png", word)
        one_line(*found, code, message)
    one_line(*run(programs / "attention_labels"), 2, "usage: attention_labels ANCHORS T,... PICTURE")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npy", ".npy", ".npy", ".png"]


@pytest.fixture(scope="module")
def labels_engine(small_pipeline, tmp_path_factory):
    from export.engine import ExportRequest, export_engine

    path = tmp_path_factory.mktemp("engines") / "labels.onnx"
    request = ExportRequest(model=str(small_pipeline), size=(128, 192), head="labels", thresholds=(0.8, 0.75), grid=12)
    export_engine(request, path, check=False)  # checked where it is tested; here any labels will do
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_engine_labels(engine_program, labels_engine, picture, tmp_path, suffix):
    """In float32, as the programs: left alone, Python's OpenVINO is in bfloat16 where the CPU has units for it."""
    frame = cv2.imread(str(picture))
    picture, outputs = tmp_path / f"it{suffix}", (tmp_path / "labels.png", tmp_path / "overlay.png")
    cv2.imwrite(str(picture), frame)
    code, output = run(engine_program, labels_engine, "0.8,0.75", picture, *outputs)
    assert code == 0, output
    segmenter = Segmenter.open(labels_engine, "cpu", backend="openvino", pieces="keep", options={"precision": "fp32"})
    check_outputs(picture, *outputs, segmenter(cv2.imread(str(picture))).labels, output)


@pytest.mark.parametrize("layout", [None, "float-nchw-rgb", "float-nchw-rgb-unit"])
def test_engine_labels_needs_no_pytorch(engine_program, picture, tmp_path, layout):
    """The labels engine that `diffseg engine labels` makes; and engines that take planes of float."""
    if layout is None:
        engine, *_ = write_labels_engine(EMBEDDED, tmp_path)
        cv2.imwrite(str(picture), cv2.imread(str(picture))[:, 1:])  # or every fifth column had two nearest pixels
    else:
        engine = write_engine(tmp_path / "bands.onnx", bands=8, layout=layout)
        cv2.imwrite(str(picture), cv2.imread(str(picture))[:32, 96:144])  # OpenCV 4 and 5 resize differently
    outputs = tmp_path / "labels.png", tmp_path / "overlay.png"
    code, output = run(engine_program, engine, "0.5,0.5,0.5", picture, *outputs)
    assert code == 0, output
    settings = {"thresholds": 0.5, "pieces": "keep", "options": {"precision": "fp32"}}
    segmenter = Segmenter.open(engine, "cpu", backend="openvino", **settings)
    check_outputs(picture, *outputs, segmenter(cv2.imread(str(picture))).labels, output)


def test_engine_labels_says_what_is_wrong(engine_program, labels_engine, picture, tmp_path):
    out = tmp_path / "labels.png", tmp_path / "overlay.png"
    bad = tmp_path / "cut.onnx"
    bad.write_bytes(labels_engine.read_bytes()[:1000])
    good = [labels_engine, "0.8,0.75", picture, *out]
    for place, word, code, message in (
        (0, tmp_path / "none.onnx", 1, "none.onnx: expected an engine of `python -m export MODEL --head labels`"),
        (0, bad, 1, "cut.onnx: expected an engine of"),
        (0, ROOT / "engines" / "tiny.onnx", 1, "tiny.onnx: expected an engine of"),
        (1, "0.8", 2, "thresholds: expected 2, one per iteration, found 0.8"),
        (1, "0.8,nan", 2, "thresholds: expected numbers above 0 such as 1.1,1.1,1.1, found 0.8,nan"),
        (2, tmp_path / "none.png", 1, "none.png: cannot be read (No such file or directory)"),
        (2, bad, 1, "cut.onnx: expected a whole PNG, JPEG or other picture that OpenCV reads"),
        (3, tmp_path / "labels.jpg", 2, "labels.jpg: expected a name that ends in .png"),
        (3, picture, 2, "picture.png: is the picture"),
        (3, tmp_path / "none" / "labels.png", 1, "its folder does not exist; make it first"),
        (4, tmp_path / "overlay.txt", 2, "overlay.txt: expected a name that ends in .png or .jpg"),
        (4, tmp_path / "." / ".." / tmp_path.name / "labels.png", 2, "expected another file than the labels'"),
    ):
        one_line(*run(engine_program, *good[:place], word, *good[place + 1 :]), code, message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.onnx", "picture.png"]


def test_outputs_that_cannot_be_written(engine_program, labels_engine, picture, tmp_path):
    """Nothing is left of them, and what stood there before stays."""
    folder, full = tmp_path / "labels.png", tmp_path / "overlay.png"
    folder.mkdir()
    full.write_bytes(b"an older one")
    found = run(engine_program, labels_engine, "0.8,0.75", picture, folder, full)
    one_line(*found, 1, "labels.png: cannot be written; name a folder with the right and the space (Is a directory)")
    assert full.read_bytes() == b"an older one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.png", "overlay.png", "picture.png"]

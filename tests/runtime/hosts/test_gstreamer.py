"""The element gives what the runtime gives of the same frames; part of it is tested without GStreamer."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime import DiffSegError, Segmenter
from runtime.hosts.gstreamer.filter import FrameFilter, padded, unpadded
from runtime.outputs.draw import draw_overlay
from tests.runtime.bands import write_engine
from tests.runtime.clips import draw

ROOT = Path(__file__).parents[3]
HEIGHT, WIDTH, COUNT = 50, 61, 30  # rows of BGR, of 8 and of 16 bits all need padding


def has_gstreamer():
    """Debian's GStreamer, its loader of Python elements, and a system's Python that loads this Python's packages."""
    if not shutil.which("gst-inspect-1.0"):
        return False
    found = subprocess.run(["gst-inspect-1.0", "python"], capture_output=True, check=False)
    version = subprocess.run(["/usr/bin/python3", "--version"], capture_output=True, text=True, check=False).stdout
    return found.returncode == 0 and version.startswith("Python {}.{}.".format(*sys.version_info))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("engines") / "bands.onnx")


@pytest.mark.parametrize("temporal", [False, True])
def test_pictures_are_those_of_the_runtime(engine, temporal):
    frames = [np.ascontiguousarray(draw(number, (HEIGHT, WIDTH))) for number in range(4)]
    expected = [result.labels for result in Segmenter.open(engine, "cpu").stream(frames, temporal=temporal)]
    ours = FrameFilter(str(engine), "cpu", temporal=temporal)
    for number, (frame, labels) in enumerate(zip(frames, expected, strict=True)):
        form = ("GRAY8", "GRAY16_LE", "BGR", "GRAY8")[number]
        found = ours(padded(frame), HEIGHT, WIDTH, form)
        shown = {"BGR": draw_overlay(frame, labels), "GRAY8": labels.astype("u1"), "GRAY16_LE": labels.astype("<u2")}
        assert found == padded(shown[form]) and labels.max() > 0
    ours.close()


def test_rows_begin_at_multiples_of_four_bytes():
    frame = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    raw = padded(frame)
    assert len(raw) == 5 * 24 and np.array_equal(unpadded(raw + b"more", 5, 7), frame)
    assert len(padded(frame[..., 0])) == 5 * 8 and len(padded(frame[..., 0].astype("<u2"))) == 5 * 16
    with pytest.raises(DiffSegError, match=r"expected 120 bytes of a BGR frame 7x5, found 119"):
        unpadded(raw[:-1], 5, 7)


def test_errors_are_one_line(engine, monkeypatch):
    for given, message in (
        ({"engine": "none.onnx"}, "no engine none.onnx"),
        ({"threshold": "high"}, "threshold: expected numbers with commas between them, or auto, found 'high'"),
        ({"threshold": "-1"}, "thresholds: expected one finite number above 0"),
        ({"threshold": "auto"}, "thresholds 'auto'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ):
        with pytest.raises(DiffSegError, match=message):
            FrameFilter(**{"engine": str(engine), "device": "cpu"} | given)
    ours = FrameFilter(str(engine), "cpu", "0.5")
    with pytest.raises(DiffSegError, match="expected 9200 bytes of a BGR frame"):
        ours(b"", HEIGHT, WIDTH, "BGR")
    monkeypatch.setattr("runtime.hosts.gstreamer.filter.draw_overlay", lambda *_, **__: 1 / 0)
    with pytest.raises(DiffSegError, match=r"^the frame: ZeroDivisionError: division by zero$"):
        ours(padded(draw(0, (HEIGHT, WIDTH))), HEIGHT, WIDTH, "BGR")
    many = FrameFilter(str(engine), "cpu")
    many._results = iter([type("Result", (), {"labels": np.full((HEIGHT, WIDTH), 256, np.int32)})])
    with pytest.raises(DiffSegError, match=r"expected labels below 256 for GRAY8, found 256; ask for format=GRAY16_LE"):
        many(padded(draw(0, (HEIGHT, WIDTH))), HEIGHT, WIDTH, "GRAY8")


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Runs a pipeline in the environment that the README names; returns the exit status and what was said."""
    if not has_gstreamer():
        pytest.skip("GStreamer and its Python loader are not installed: see runtime/hosts/README.md")
    folder = tmp_path_factory.mktemp("gst")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("GST_", "VIRTUAL_ENV"))},
        "PATH": "/usr/bin:/bin",
        "GST_PLUGIN_PATH": str(ROOT / "runtime" / "hosts" / "gstreamer"),
        "GST_REGISTRY": str(folder / "registry.bin"),
        "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}",
    }

    def run(pipeline):
        command = ["gst-launch-1.0", "-q", *pipeline.split()]
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr

    run.folder = folder
    return run


SOURCE = f"videotestsrc num-buffers={COUNT} pattern=ball ! video/x-raw,width={WIDTH},height={HEIGHT} ! videoconvert"


@pytest.mark.slow
def test_a_pipeline_gives_what_the_command_line_gives(launch, engine):
    code, said = launch(
        f"{SOURCE} ! video/x-raw,format=BGR ! tee name=t t. ! queue ! filesink location=frames.raw "
        f"t. ! queue ! diffseg engine={engine} output=labels temporal=true ! video/x-raw,format=GRAY8 ! filesink "
        f"location=labels.raw t. ! queue ! diffseg engine={engine} threshold=0.7 ! filesink location=overlay.raw"
    )
    assert code == 0, said
    size = len(padded(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
    raw = (launch.folder / "frames.raw").read_bytes()
    frames = [unpadded(raw[start : start + size], HEIGHT, WIDTH) for start in range(0, len(raw), size)]
    command = [sys.executable, "-m", "runtime.segment", "-", "--size", f"{WIDTH}x{HEIGHT}", "--rate", "30"]
    command += ["--engine", str(engine), "--device", "cpu", "--save", "labels", "--output", str(launch.folder)]
    done = subprocess.run(command, input=b"".join(frame.tobytes() for frame in frames), cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    labels = [cv2.imread(str(path), -1) for path in sorted((launch.folder / "stdin_labels").glob("*.png"))]
    assert len(frames) == len(labels) == COUNT and len(np.unique(labels)) > 1
    assert (launch.folder / "labels.raw").read_bytes() == b"".join(map(padded, labels))
    segmenter = Segmenter.open(engine, "cpu")
    drawn = b"".join(padded(draw_overlay(frame, segmenter(frame).labels)) for frame in frames)
    assert (launch.folder / "overlay.raw").read_bytes() == drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ("engine=none.onnx", "no engine none.onnx; check the path"),
        ("output=masks", "output: expected overlay or labels, found 'masks'"),
        ("threshold=high", "threshold: expected numbers"),
    ],
)
def test_an_error_ends_the_pipeline_with_one_line(launch, properties, message):
    code, said = launch(f"{SOURCE} ! diffseg {properties} ! fakesink")
    assert code != 0 and "Traceback" not in said
    (line,) = [line for line in said.splitlines() if message in line]
    assert line.startswith("ERROR: from element /GstPipeline:pipeline0/")

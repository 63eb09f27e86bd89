"""The command line: right answers, one-line errors, exit codes, whole files."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data
from typer.testing import CliRunner

from runtime import Segmenter
from runtime.outputs.journal import INDEX
from runtime.segment import app

pytestmark = pytest.mark.usefixtures("embedded_stays_open")

CAT = data.chelsea()[..., ::-1].copy()
COFFEE = data.coffee()[::2, ::2, ::-1].copy()


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(result, code, *words):
    """One line on stderr that names what is wrong, no traceback, the expected exit code."""
    assert result.exit_code == code, (result.exit_code, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and all(word in lines[0] for word in words), result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A working folder with two photographs in `in/`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    cv2.imwrite("in/cat.png", CAT)
    cv2.imwrite("in/coffee.jpg", COFFEE)
    return tmp_path


def written(folder):
    """All files but the index, by which a run of several inputs can be resumed."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != INDEX)
    return sorted(str(path.relative_to(folder)) for path in found)


def test_one_image(photos):
    result = run("in/cat.png")
    assert result.exit_code == 0 and result.stdout == ""
    assert written(photos / "segmented") == ["cat_labels.png", "cat_overlay.png"]
    labels = cv2.imread("segmented/cat_labels.png", cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint8 and np.array_equal(labels, Segmenter.open()(CAT).labels)
    overlay = cv2.imread("segmented/cat_overlay.png")
    assert overlay.shape == CAT.shape and (overlay == 255).all(-1).sum() > 100


def test_folder_with_subfolders_json_and_a_second_run(photos):
    (photos / "in" / "deep er" / "ü").mkdir(parents=True)
    cv2.imencode(".png", COFFEE)[1].tofile("in/deep er/ü/kaffee ñ.png")
    (photos / "in" / "notes.txt").write_text("no image")
    result = run("in", "--json", "--output", "in/out")
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["input"] for line in lines] == ["in/cat.png", "in/coffee.jpg", "in/deep er/ü/kaffee ñ.png"]
    keys = {"input", "frame", "size", "segments", "regions", "outputs", "milliseconds"}
    assert all(set(line) == keys for line in lines)
    assert [len(line["regions"]) for line in lines] == [line["segments"] for line in lines]
    assert lines[0]["outputs"] == ["in/out/cat_overlay.png", "in/out/cat_labels.png"]
    assert lines[0]["size"] == list(CAT.shape[:2]) and lines[0]["frame"] == 0
    names = ["cat", "coffee", "deep er/ü/kaffee ñ"]
    expected = sorted(f"{name}_{kind}.png" for name in names for kind in ("labels", "overlay"))
    assert written(photos / "in" / "out") == expected
    # Our own pictures lie inside the input folder now, and are no inputs.
    again = run("in", "--json", "--output", "in/out")
    assert len(again.stdout.splitlines()) == 3 and written(photos / "in" / "out") == expected
    fails(run("in/out/cat_labels.png"), 1, "nothing to do")
    fails(run("in/out"), 1, "only pictures that this program wrote (6)")


def test_glob(photos):
    (photos / "in" / "a").mkdir()
    cv2.imwrite("in/a/cat.png", CAT)
    assert run("in/**/*.png").exit_code == 0
    assert written(photos / "segmented") == sorted(
        f"{name}_{kind}.png" for name in ("cat", "a/cat") for kind in ("labels", "overlay")
    )


def test_name_with_glob_characters_is_a_file_first(photos):
    cv2.imwrite("in/cat[1].png", CAT)
    assert run("in/cat[1].png", "--save", "overlay").exit_code == 0
    assert written(photos / "segmented") == ["cat[1]_overlay.png"]


def test_names_that_collide(photos):
    cv2.imwrite("in/cat.jpg", COFFEE)
    (photos / "other").mkdir()
    cv2.imwrite("other/coffee.jpg", CAT)
    result = run("in", "other/coffee.jpg", "in/cat.png", "--save", "labels", "--json")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 4
    assert written(photos / "segmented") == [
        "cat.jpg_labels.png",
        "cat.png_labels.png",
        "in/coffee.jpg_labels.png",
        "other/coffee.jpg_labels.png",
    ]


def test_names_that_collide_with_longer_names(photos):
    for name in ("a.jpg", "a.png", "a.jpg.png", "a.jpg.png.png"):
        shutil.copy("in/coffee.jpg", f"in/{name}")
    assert run("in", "--save", "labels").exit_code == 0
    assert len(written(photos / "segmented")) == 6


def test_a_file_of_someone_elses_is_never_overwritten(photos):
    cv2.imwrite("in/cat_labels.png", COFFEE)
    before = (photos / "in" / "cat_labels.png").read_bytes()
    fails(run("in/cat.png", "--output", "in"), 1, "in/cat_labels.png: exists and is not this program's")
    assert (photos / "in" / "cat_labels.png").read_bytes() == before


def test_an_unreadable_folder_is_named_and_the_rest_finishes(photos, monkeypatch):
    """Tests may run as a user whom permissions do not stop, so the refusal is made here."""
    import os as system

    (photos / "in" / "locked").mkdir()
    scandir = system.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(system, "scandir", refuse)
    fails(run("in", "--save", "labels"), 1, "in/locked: cannot be read (Permission denied)")
    assert len(written(photos / "segmented")) == 2


def test_an_input_is_never_overwritten(photos):
    cv2.imwrite("in/cat_labels.png", COFFEE)
    before = (photos / "in" / "cat_labels.png").read_bytes()
    fails(run("in", "--output", "in"), 1, "would overwrite the input", "choose another --output")
    assert (photos / "in" / "cat_labels.png").read_bytes() == before
    assert (photos / "in" / "coffee_labels.png").exists()


def test_other_inputs_finish_when_one_fails(photos):
    jpeg = (photos / "in" / "coffee.jpg").read_bytes()
    (photos / "in" / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    fails(run("in"), 1, "in/cut.jpg: the image is cut short")
    assert written(photos / "segmented") == sorted(
        f"{name}_{kind}.png" for name in ("cat", "coffee") for kind in ("labels", "overlay")
    )


def test_broken_images(photos):
    png = (photos / "in" / "cat.png").read_bytes()
    (photos / "cut.png").write_bytes(png[: len(png) // 2])
    fails(run("cut.png"), 1, "cut.png: the image is cut short")
    (photos / "text.jpg").write_text("I am text")
    fails(run("text.jpg"), 1, "text.jpg: is not an image")
    (photos / "empty.jpg").write_bytes(b"")
    fails(run("empty.jpg"), 1, "empty.jpg: is empty")
    (photos / "noise.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4 + b"\xff\xd9")
    fails(run("noise.jpg"), 1, "noise.jpg:")
    (photos / "grey.pfm").write_bytes(b"Pf\n2 2\n-1.0\n" + np.ones(4, np.float32).tobytes())
    os.mkfifo("pipe.jpg")
    fails(run("pipe.jpg"), 1, "pipe.jpg: is no regular file")
    (photos / "dir.jpg").mkdir()
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    fails(run("gone.jpg"), 1, "gone.jpg: is a broken link")
    fails(run("x" * 300 + ".jpg"), 1, "File name too long")
    fails(run("~nosuchuser/x.jpg"), 1, "home directory")
    fails(run(""), 1, "an empty INPUT")
    fails(run("missing.jpg"), 1, "missing.jpg: no such file or folder")
    fails(run("*.bmp"), 1, "*.bmp: no images")
    (photos / "nothing").mkdir()
    fails(run("nothing"), 1, "nothing: no images")
    assert not (photos / "segmented").exists()


@pytest.mark.slow
def test_images_of_every_kind(photos):
    """Grey, alpha, 16 bits, one pixel, very long."""
    grey = cv2.cvtColor(CAT, cv2.COLOR_BGR2GRAY)
    images = {
        "grey": grey,
        "alpha": np.dstack([CAT, grey]),
        "sixteen": CAT.astype(np.uint16) * 257,
        "greysixteen": grey.astype(np.uint16) * 257,
        "pixel": CAT[:1, :1],
        "long": np.tile(CAT[:3], (1, 45, 1))[:, :20000],
    }
    (photos / "kinds").mkdir()
    for name, image in images.items():
        cv2.imwrite(f"kinds/{name}.png", image)
    assert run("kinds", "--output", "out").exit_code == 0
    for name, image in images.items():
        labels = cv2.imread(f"out/{name}_labels.png", cv2.IMREAD_UNCHANGED)
        assert labels.shape == image.shape[:2] and labels.dtype == np.uint8, name
        assert cv2.imread(f"out/{name}_overlay.png").shape == (*image.shape[:2], 3)
    same = [cv2.imread(f"out/{name}_labels.png", cv2.IMREAD_UNCHANGED) for name in ("alpha", "sixteen")]
    assert np.array_equal(same[0], same[1])


def test_exif_rotation(photos):
    """Orientation 6: the picture is to be turned by 90° clockwise before anything else."""
    jpeg = cv2.imencode(".jpg", COFFEE)[1].tobytes()
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00"
    body = b"Exif\x00\x00" + tiff
    (photos / "turned.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:])
    assert run("turned.jpg").exit_code == 0
    overlay = cv2.imread("segmented/turned_overlay.png")
    assert overlay.shape[:2] == COFFEE.shape[1::-1]


def test_more_than_256_segments_take_16_bits(tmp_path):
    from runtime.outputs.draw import label_image
    from runtime.outputs.palette import palette
    from runtime.outputs.png import write_png

    labels = np.arange(300, dtype=np.int32).reshape(15, 20)
    image = label_image(labels)
    write_png(tmp_path / "x.png", image)
    assert np.array_equal(cv2.imread(str(tmp_path / "x.png"), cv2.IMREAD_UNCHANGED), labels)
    assert len(np.unique(palette(60), axis=0)) == 60


def test_written_pngs_are_valid_for_strict_readers(photos):
    import zlib

    run("in/cat.png")
    blob = (photos / "segmented" / "cat_labels.png").read_bytes()
    position, kinds = 8, []
    while position < len(blob):
        length = int.from_bytes(blob[position : position + 4], "big")
        kind = blob[position + 4 : position + 8 + length]
        assert zlib.crc32(kind) == int.from_bytes(blob[position + 8 + length : position + 12 + length], "big")
        kinds.append(kind[:4])
        position += 12 + length
    assert kinds[:2] == [b"IHDR", b"tEXt"] and kinds[-1] == b"IEND"


def test_outputs_are_ordinary_files(photos):
    run("in/cat.png")
    (photos / "plain").write_text("")
    modes = {stat.S_IMODE(Path(path).stat().st_mode) for path in ("plain", "segmented/cat_labels.png")}
    assert len(modes) == 1


def test_unwritable_output(photos):
    (photos / "file").write_text("")
    for output in ("file", "file/below"):
        words = ("cannot be written", f"--output {output}: ", "found the file file; name another folder")
        fails(run("in/cat.png", "--output", output), 1, *words)
    assert run("in/cat.png", "--output", "file", "--save", "none").exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--grid", "1"], ["error: --grid: expected", "2"]),
        (["--grid", "40"], ["error: --grid: expected a grid from 2 to 32"]),
        (["--threshold", "x"], ["--threshold: expected numbers"]),
        (["--threshold", "0"], ["error: --threshold: expected"]),
        (["--threshold", "1,2", "--iterations", "3"], ["error: --threshold: expected one", "found 2"]),
        (["--iterations", "0"], ["error: --iterations: expected"]),
        (["--weights", "1,1"], ["error: --weights: expected"]),
        (["--weights", "heavy"], ["--weights: expected numbers"]),
        (["--solver", "magic"], ["error: --solver: expected 'merge', 'kmeans', 'ncut' or 'kcut', found 'magic'"]),
        (["--solver", "ncut", "--tau", "3"], ["error: --tau: expected a finite number above 0 and at most 2"]),
        (
            ["--solver", "kcut", "--alpha", "nan"],
            ["error: --alpha: expected a finite number above 0 and at most 1000, found nan"],
        ),
        (["--tau", "0.4"], ["error: --tau: belongs to ncut, found the solver 'merge'"]),
        (["--threshold", "auto", "--solver", "ncut"], ["'auto': expected the solver merge, found ncut"]),
        (["--refine", "magic"], ["error: --refine: expected none, or one or more of kmeans, ncut, kcut, snap, pamr"]),
        (["--backend", "onnxruntime", "--precision", "bf16"], ["error: --precision: onnxruntime: no such option"]),
        (["--threads", "0"], ["error: --threads: expected a whole number from 1"]),
        (["--min-area", "-1"], ["error: --min-area: expected a share of the frame"]),
        (["--pieces", "some"], ["error: --pieces: expected one of keep, split, unlike, found 'some'"]),
        (["--save", "overlay,sound"], ["--save: expected some of overlay, labels"]),
        (["--save", ""], ["--save"]),
        (["--device", "npu"], ["expected auto, cpu"]),
        (["--device", "cuda"], ["no CUDA", "--device cpu"]),
        (["--engine", "no.onnx"], ["no engine"]),
        (["--engine", "model.tflite"], ["expected an engine that ends in .onnx"]),
    ],
)
def test_bad_usage(photos, options, words):
    fails(run("in/cat.png", *options), 2, *words)
    assert not (photos / "segmented").exists()


def test_bad_usage_of_the_parser(photos):
    assert run().exit_code == 2
    assert run("in/cat.png", "--gird", "3").exit_code == 2
    assert run("in/cat.png", "--grid", "three").exit_code == 2


def test_options_reach_the_merge(photos):
    one = json.loads(run("in/cat.png", "--threshold", "1e9", "--json").stdout)
    words = ("--threshold", "1e-9", "--iterations", "1", "--grid", "4", "--pieces", "keep", "--json")
    many = json.loads(run("in/cat.png", *words).stdout)
    assert one["segments"] == 1 and 4 < many["segments"] <= 16
    assert run("in/cat.png", "--weights", "1,0,0,0", "--refine", "kmeans", "--save", "segments").exit_code == 0
    assert (photos / "segmented" / "cat_segments.png").exists()
    options = ("--threshold", "auto", "--refine", "snap", "--min-area", "0.05", "--json")
    chosen = json.loads(run("in/cat.png", *options).stdout)
    assert chosen["segments"] > 1
    labels = cv2.imread("segmented/cat_labels.png", cv2.IMREAD_UNCHANGED)
    assert np.unique(labels, return_counts=True)[1].min() >= 0.05 * labels.size


@pytest.mark.slow
def test_as_a_program(photos):
    """The real process: paths with spaces, stderr for people, nothing else on stdout."""
    Path("in/cat.png").rename("in/my cat.png")
    done = subprocess.run(
        [sys.executable, "-m", "runtime.segment", "in/my cat.png", "gone.png", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["input"] == "in/my cat.png"
    assert done.stderr.strip() == "error: gone.png: no such file or folder"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupted_in_the_middle(photos, number):
    """Whole files only, and no temporary ones."""
    for index in range(200):
        shutil.copy("in/coffee.jpg", f"in/{index:03}.jpg")
    command = [sys.executable, "-m", "runtime.segment", "in", "--json", "--save", "labels"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # What a shell starts in the background ignores SIGINT, and so would its children.
    with subprocess.Popen(command, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL), **pipes) as process:
        done = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(number)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    done += [json.loads(line) for line in rest.splitlines()]
    said = "error: interrupted; what was finished is whole, the rest is left out"
    assert errors.strip() == f"{said}; {len(done)} of 202 images segmented into segmented"
    files = [photos / "segmented" / name for name in written(photos / "segmented")]
    assert 3 <= len(done) < 200 and len(done) <= len(files) <= len(done) + 1
    assert all(cv2.imread(str(file), cv2.IMREAD_UNCHANGED) is not None and file.suffix == ".png" for file in files)

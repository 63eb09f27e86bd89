"""The command line on clips: what it writes, what it says, and that nothing that was done is lost."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from runtime.files import is_own_output
from runtime.outputs.journal import INDEX
from runtime.segment import app
from tests.runtime.clips import draw, read_clip, write_clip

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def errors(result, *words):
    """The one line that begins with error or warning, which holds all the words."""
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "warning: "))]
    assert len(lines) == 1 and all(word in lines[0] for word in words), result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder):
    """All files but the index, by which a run of several inputs can be resumed."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != INDEX)
    return sorted(str(path.relative_to(folder)) for path in found)


def test_a_folder_with_a_photograph_and_a_clip(folder, stand_in):
    (folder / "in" / "deep").mkdir(parents=True)
    cv2.imwrite("in/photo.png", draw(0))
    write_clip(folder / "in" / "deep" / "clip.mp4", 6, rate=Fraction(30000, 1001), audio="aac")
    result = run("in", "--json", "--output", "in/out")
    assert result.exit_code == 0 and result.stderr == ""
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["input"], line["frame"]) for line in lines] == [
        *(("in/deep/clip.mp4", n) for n in range(6)),
        ("in/photo.png", 0),
    ]
    assert lines[3]["time"] == pytest.approx(3 * 1001 / 30000) and lines[3]["size"] == [48, 64]
    assert lines[3]["segments"] == len(lines[3]["identities"]) == len(lines[3]["regions"]) == 2
    folder_out = "in/out/deep/clip"
    assert lines[3]["outputs"] == [f"{folder_out}_overlay.mp4", f"{folder_out}_labels/000003.png"]
    stages = {"resize", "network", "merge", "labels", "track", "draw", "encode", "total"}
    assert set(lines[3]["milliseconds"]) == stages
    expected = [f"deep/clip_labels/{n:06d}.png" for n in range(6)]
    assert written(folder / "in" / "out") == sorted(
        [*expected, "deep/clip_overlay.mp4", "photo_labels.png", "photo_overlay.png"]
    )
    times, images = read_clip(folder / "in" / "out" / "deep" / "clip_overlay.mp4")
    assert times == [Fraction(n * 1001, 30000) for n in range(6)] and images[0].shape == (48, 64, 3)
    labels = [cv2.imread(f"in/out/{path}", cv2.IMREAD_UNCHANGED) for path in expected]
    square = [image[20, 8 + 3 * n] for n, image in enumerate(labels)]
    assert len(set(square)) == 1 and all(image[40, 40] != square[0] for image in labels)
    # What was written lies inside the input folder now, and is no input.
    again = run("in", "--json", "--output", "in/out")
    assert again.exit_code == 0 and len(again.stdout.splitlines()) == 7


def test_without_temporal_identity_every_frame_is_as_a_picture(folder, stand_in):
    path = write_clip(folder / "clip.mp4", 4)
    assert run("clip.mp4", "--temporal", "off", "--save", "archive,segments").exit_code == 0
    _, images = read_clip(path)
    with np.load("segmented/clip_labels.npz") as archive:
        for number, image in enumerate(images):
            cv2.imwrite("frame.png", image)
            assert run("frame.png", "--save", "archive", "--output", f"{number}").exit_code == 0
            alone = cv2.imread(f"{number}/frame_labels.png", cv2.IMREAD_UNCHANGED)
            assert np.array_equal(archive[f"{number:06d}"], alone)
    assert written(folder / "segmented") == ["clip_labels.npz", "clip_segments.mp4"]


def test_work_that_is_saved(folder, stand_in):
    """--every: the network sees each Nth frame, and labels move on between; --skip-similar: not what it has seen."""
    write_clip(folder / "clip.mp4", 12, size=(96, 128))
    assert run("clip.mp4", "--every", "3", "--save", "labels").exit_code == 0 and stand_in.calls == 4
    carried = [cv2.imread(f"segmented/clip_labels/{n:06d}.png", cv2.IMREAD_UNCHANGED) for n in range(12)]
    square = [image == carried[0][20, 8] for image in carried]
    truth = (draw(2, (96, 128)) == (60, 220, 240)).all(axis=-1)
    share = [(mask & truth).sum() / (mask | truth).sum() for mask in square]
    assert share[2] > share[0] + 0.1
    scenes = [draw(number, (96, 128)) for number in range(3)] + [255 - draw(7, (96, 128))[::-1]] * 5
    for temporal in ("on", "off"):  # a cut between the frames that the engine is to see: it sees the first one after
        stand_in.calls = 0
        with stdin(b"".join(frame.tobytes() for frame in scenes)):
            options = ["--size", "128x96", "--every", "8", "--temporal", temporal, "--save", "labels"]
            assert run("-", *options, "--output", "cut").exit_code == 0
        assert stand_in.calls == 2
    # Another scene for one frame between two that the engine is to see: what comes after is not like what is shown.
    one, other = (np.ascontiguousarray(scenes[index]) for index in (0, 3))
    with stdin(b"".join(frame.tobytes() for frame in (one, other, one, one))):
        options = ["--size", "128x96", "--every", "2", "--skip-similar", "--save", "labels"]
        assert run("-", *options, "--output", "flash").exit_code == 0
    shown = [cv2.imread(f"flash/stdin_labels/{n:06d}.png", cv2.IMREAD_UNCHANGED) for n in range(4)]
    for labels in shown[2:]:
        assert (labels[14:26, 2:14] == labels[20, 8]).all() and (labels[50:] != labels[20, 8]).all()
    still = [draw(0)] * 5 + [draw(5)] * 5
    stream = b"".join(frame.tobytes() for frame in still)
    for options, calls in ((["--skip-similar"], 2), ([], 10)):
        stand_in.calls = 0
        with stdin(stream):
            assert run("-", "--size", "64x48", "--save", "labels", "--output", "still", *options).exit_code == 0
        assert stand_in.calls == calls and len(written(folder / "still")) == 10


class stdin:
    """Bytes on the process's standard input."""

    def __init__(self, data):
        self.data = data

    def __enter__(self):
        self.kept = os.dup(0)
        Path("input.raw").write_bytes(self.data)
        file = os.open("input.raw", os.O_RDONLY)
        os.dup2(file, 0)
        os.close(file)

    def __exit__(self, *error):
        os.dup2(self.kept, 0)
        os.close(self.kept)


def test_start_and_end(folder, stand_in):
    write_clip(folder / "clip.mp4", 50)
    result = run("clip.mp4", "--start", "0:00:01", "--end", "1.2", "--json", "--save", "none")
    assert [json.loads(line)["time"] for line in result.stdout.splitlines()] == [1, 1.04, 1.08, 1.12, 1.16]
    assert not (folder / "segmented").exists()
    errors(run("clip.mp4", "--start", "5"), "clip.mp4: no frames between --start and --end")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--every", "0"], "--every: expected a whole number"),
        (["--start", "soon"], "--start: expected seconds or h:m:s"),
        (["--start", "5", "--end", "4"], "--end: expected a time after --start 5"),
        (["--temporal", "maybe"], "--temporal: expected on or off"),
        (["--size", "640"], "--size: expected width x height"),
        (["--size", "0x4"], "--size: expected width x height"),
        (["--rate", "1/0"], "--rate: expected frames per second"),
        (["--save", "none,labels"], "--save: expected some of"),
    ],
)
def test_bad_usage(folder, stand_in, options, words):
    result = run("clip.mp4", *options)
    assert result.exit_code == 2
    errors(result, words)


@pytest.mark.slow
def test_what_is_wrong_with_one_does_not_stop_the_others(folder, stand_in):
    whole = write_clip(folder / "a.mkv", 100, size=(144, 192)).read_bytes()
    (folder / "b.mkv").write_bytes(whole[: len(whole) // 2])
    (folder / "c.mp4").write_bytes(b"")
    result = run("b.mkv", "c.mp4", "gone.mp4", "shot_%03d.png", "a.mkv", "--save", "overlay")
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "warning: "))]
    assert result.exit_code == 1 and len(lines) == 4, result.stderr
    assert "gone.mp4: no such file" in lines[0] and "b.mkv: the file is cut short" in lines[1]
    assert "c.mp4: is empty" in lines[2] and "shot_%03d.png: no picture" in lines[3]
    assert written(folder / "segmented") == ["a_overlay.mp4", "b_overlay.mp4"]
    assert 20 < len(read_clip(folder / "segmented" / "b_overlay.mp4")[0]) < 80
    assert len(read_clip(folder / "segmented" / "a_overlay.mp4")[0]) == 100


def test_no_file_of_someone_elses_and_no_input_is_written_over(folder, stand_in):
    write_clip(folder / "clip.mp4", 3)
    for name in ("clip_overlay.mp4", "clip_labels/000001.png"):
        (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "out" / name).write_bytes(b"mine")
        result = run("clip.mp4", "--output", "out")
        errors(result, f"out/{name}: exists and is not this program's")
        assert result.exit_code == 1 and written(folder / "out") == [name]
        (folder / "out" / name).unlink()
    shutil.copy("clip.mp4", "clip_overlay.mp4")
    before = (folder / "clip_overlay.mp4").read_bytes()
    result = run("clip.mp4", "clip_overlay.mp4", "--output", ".", "--save", "overlay")
    errors(result, "clip.mp4: would overwrite the input")
    assert (folder / "clip_overlay.mp4").read_bytes() == before


def test_an_error_of_the_engine_in_the_middle(folder, stand_in, monkeypatch):
    """It surfaces with its own message, and the frames before it are in the file."""
    from runtime.errors import DiffSegError

    infer = stand_in._infer

    def fails_once(inputs):
        if stand_in.calls == 4:
            raise DiffSegError("the engine ran out of memory")
        return infer(inputs)

    monkeypatch.setattr(stand_in, "_infer", fails_once)
    write_clip(folder / "clip.mp4", 40)
    result = run("clip.mp4")
    assert result.exit_code == 1
    errors(result, "the engine ran out of memory")
    times, _ = read_clip(folder / "segmented" / "clip_overlay.mp4")
    assert len(times) == len(list((folder / "segmented" / "clip_labels").iterdir())) == 4


def test_a_full_disk(folder, stand_in, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("runtime.outputs.png.write_atomically", refuse)
    write_clip(folder / "clip.mp4", 40)
    result = run("clip.mp4")
    assert result.exit_code == 1
    errors(result, "clip_labels/000000.png: the disk is full")


def test_without_pyav_labels_are_written_and_a_video_is_not(folder, stand_in, monkeypatch):
    write_clip(folder / "clip.mp4", 5)
    monkeypatch.setitem(sys.modules, "av", None)
    result = run("clip.mp4")
    assert result.exit_code == 1
    errors(result, 'pip install "diffseg[video]"', "--save labels")
    assert run("clip.mp4", "--save", "labels").exit_code == 0
    assert len(written(folder / "segmented")) == 5


def test_showing_until_q_is_pressed(folder, stand_in, monkeypatch):
    shown = []
    monkeypatch.setattr("runtime.stream.clip.check_window", lambda: None)
    monkeypatch.setattr(cv2, "imshow", lambda window, image: shown.append(image))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: ord("q") if len(shown) == 3 else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *arguments: 1.0)
    monkeypatch.setattr(cv2, "destroyWindow", lambda window: None)
    write_clip(folder / "clip.mp4", 200)
    assert run("clip.mp4", "--show", "--save", "archive").exit_code == 0
    assert shown[0].shape == (48, 64, 3) and 3 <= len(shown) < 30
    with np.load("segmented/clip_labels.npz") as archive:
        assert len(archive.files) == len(shown) + 1


def test_showing_without_a_display(folder, stand_in, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    write_clip(folder / "clip.mp4", 5)
    result = run("clip.mp4", "--show", "--save", "none")
    assert result.exit_code == 1
    errors(result, "--show: there is no display")


# A program that segments with the stand-in, and says on stderr how much memory it took at most, in kB.
PROGRAM = """
import resource, sys
from runtime.segmenter import Segmenter
from runtime.segment import app
from runtime.terminal import run
from tests.runtime.clips import StandIn
stand_in = StandIn(float(sys.argv.pop(1)))
Segmenter.open = lambda *arguments, **options: Segmenter(stand_in)
try:
    run(app, "segment")
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def program(seconds, *arguments, **options):
    """Start the command line as a process of its own, on an engine that takes `seconds` per frame."""
    command = [sys.executable, "-c", PROGRAM, str(seconds), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, **options)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(folder):
    """Two thousand frames of 37 kB each, through all stages."""
    frames = [cv2.resize(draw(n), (128, 96)).tobytes() for n in range(10)]
    peaks = {}
    for count in (200, 2000):
        options = ["--size", "128x96", "--every", "4", "--save", "overlay,archive"]
        process = program(0, "-", *options, stdin=subprocess.PIPE)
        for number in range(count):
            process.stdin.write(frames[number % 10])
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        peaks[count] = int(said.split()[-1]) / 1024
        with np.load("segmented/stdin_labels.npz") as archive:
            assert len(archive.files) == count + 1
    assert len(read_clip(folder / "segmented" / "stdin_overlay.mp4")[0]) == 2000
    assert peaks[2000] < peaks[200] + 30, peaks  # all frames would be 74 MB


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupted_in_the_middle(folder, number):
    """The files hold the frames done, are whole, and lie in their place."""
    write_clip(folder / "clip.mp4", 300, audio="aac")
    options = ["--json", "--save", "overlay,labels,archive"]
    # Unbuffered, or lines that are read ahead would be lost to `communicate`.
    with program(0.02, "clip.mp4", *options, stdout=subprocess.PIPE, bufsize=0) as process:
        lines = [process.stdout.readline() for _ in range(20)]
        process.send_signal(number)
        rest, said = process.communicate(timeout=60)
    said = said.decode().splitlines()[0]
    assert process.returncode == 130 and said == "error: interrupted; what was finished is whole, the rest is left out"
    done = len(lines) + len(rest.splitlines())
    assert 20 <= done < 60
    times, _ = read_clip(folder / "segmented" / "clip_overlay.mp4")
    assert len(times) == done and is_own_output(folder / "segmented" / "clip_overlay.mp4")
    with av.open("segmented/clip_overlay.mp4") as container:
        stream = container.streams.audio[0]
        sound = sum(packet.duration * packet.time_base for packet in container.demux(stream) if packet.size)
    assert abs(sound - Fraction(done, 25)) < Fraction(1, 10)
    with np.load("segmented/clip_labels.npz") as archive:
        assert len(archive.files) == done + 1
    assert len(list((folder / "segmented" / "clip_labels").iterdir())) == done
    assert not [name for name in written(folder) if name.endswith(".part")]


@pytest.mark.slow
def test_a_reader_of_the_lines_that_goes_away(folder):
    """As with `| head -3`: no traceback, and the files are whole."""
    write_clip(folder / "clip.mp4", 100)
    with program(0.01, "clip.mp4", "--json", "--save", "overlay", stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
        process.wait(60)
    assert process.returncode == 1 and "Traceback" not in said
    assert 1 <= len(read_clip(folder / "segmented" / "clip_overlay.mp4")[0]) < 100


@pytest.mark.slow
def test_standard_input_that_closes_early(folder):
    process = program(0, "-", "--size", "64x48", "--save", "labels", stdin=subprocess.PIPE)
    _, said = process.communicate(draw(0).tobytes() + b"and then", timeout=60)
    assert process.returncode == 1 and b"the last frame is cut short (8 of 9216 bytes)" in said
    assert written(folder / "segmented") == ["stdin_labels/000000.png"]
    process = program(0, "-", "--size", "64x48", "--save", "labels", stdin=subprocess.PIPE)
    _, said = process.communicate(b"", timeout=60)
    assert process.returncode == 1 and b"error: -: no frames" in said


def test_standard_input_without_a_size(folder, stand_in):
    """An encoded picture is a photograph; anything else is bad usage, before other inputs are touched."""
    write_clip(folder / "a.mp4", 3)
    with stdin(cv2.imencode(".jpg", draw(0))[1].tobytes()):
        result = run("-", "--json")
    line = json.loads(result.stdout)
    assert line["size"] == [48, 64] and line["segments"] == 2
    assert written(folder / "segmented") == ["stdin_labels.png", "stdin_overlay.png"]
    with stdin(draw(0).tobytes()):
        result = run("a.mp4", "-", "--output", "other")
    assert result.exit_code == 2 and not (folder / "other").exists()
    errors(result, "need --size")


def test_labels_are_numbered_by_the_clips_frames(folder, stand_in):
    write_clip(folder / "clip.mp4", 50)
    result = run("clip.mp4", "--start", "1.2", "--end", "1.3", "--json", "--save", "labels")
    assert [json.loads(line)["frame"] for line in result.stdout.splitlines()] == [30, 31, 32]
    assert written(folder / "segmented") == [f"clip_labels/{number:06d}.png" for number in (30, 31, 32)]

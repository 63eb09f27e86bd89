"""Inputs that are made to harm: each is one line, the others finish, and nothing is opened but what was named."""

import contextlib
import http.server
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from runtime.engine.external import check_external_data
from runtime.engine.registry import EMBEDDED, open_engine
from runtime.engine.spec import EngineSpec, sidecar_path
from runtime.errors import DiffSegError
from runtime.files import new_folder, part_path, read_small_text, sweep_parts
from runtime.frames.container import ContainerClip
from runtime.frames.find import find_sources
from runtime.frames.source import OpenOptions, Source
from runtime.frames.video import open_video
from runtime.pyramid.config import MergeConfig
from runtime.pyramid.weights import resolution_ratios
from runtime.segment import app
from runtime.segmenter import Segmenter
from runtime.stream.contents import content_of
from tests.runtime.clips import StandIn, draw, write_clip
from tests.runtime.uniform import write_uniform_engine

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def complaints(result):
    assert "Traceback" not in result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith(("error: ", "warning: "))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Refusing(StandIn):
    """Fails with `error` on frames that are white."""

    error: Exception = ValueError("rows that sum to nan")

    def _infer(self, inputs):
        outputs = super()._infer(inputs)
        if inputs["frame"].min() > 250:
            raise self.error
        return outputs


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("rows that\nsum to nan"), "ValueError: rows that sum to nan"),
        (MemoryError(), "more memory than is available"),
        (IndexError(), "IndexError"),
        (RecursionError("deep"), "RecursionError: deep"),
    ],
)
def test_an_error_of_any_kind_is_of_one_picture(folder, monkeypatch, caplog, error, said):
    engine = Refusing()
    engine.error = error
    monkeypatch.setattr(Segmenter, "open", lambda *a, **o: Segmenter(engine))
    for number in range(6):
        picture = np.full((40, 40, 3), 255, np.uint8) if number == 3 else draw(number)
        cv2.imwrite(f"{number}.png", picture)
    write_clip(folder / "white.avi", 3, codec="mpeg4")
    with caplog.at_level(logging.DEBUG, "diffseg"):
        result = run(*sorted(folder.glob("*.png")), "white.avi", "--output", "out")
    assert result.exit_code == 1
    lines = complaints(result)
    assert len(lines) == 1 and "3.png" in lines[0] and said in lines[0]
    assert len(list((folder / "out").glob("*_labels.png"))) == 5 and (folder / "out" / "white_overlay.mp4").exists()
    assert any(record.exc_info for record in caplog.records)


def with_an_infinity(maps):
    """In one row of the finest maps, of which only some are summed up."""
    changed = maps.copy()
    if maps.shape[1] == 1024:
        changed[:, 1] = np.inf
    return changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda maps: maps * 2, "attention_32x32, expected rows that sum to 1, found 2"),
        (lambda maps: maps * np.float32("nan"), "attention_32x32, expected rows that sum to 1, found nan"),
        (
            with_an_infinity,
            "pyramid[0]: expected rows of probabilities, finite, not negative and not all",
        ),
    ],
)
def test_an_engine_whose_maps_are_no_probabilities_is_named_once(folder, monkeypatch, change, said):
    segmenter = Segmenter.open(write_uniform_engine(folder / "wrong.onnx"), "cpu", backend="onnxruntime")
    infer = segmenter.engine._infer
    monkeypatch.setattr(segmenter.engine, "_infer", lambda inputs: [change(maps) for maps in infer(inputs)])
    monkeypatch.setattr(Segmenter, "open", lambda *a, **o: segmenter)
    for name in "abc":
        cv2.imwrite(f"{name}.png", draw(0))
    result = run("a.png", "b.png", "c.png", "--output", "out")
    lines = complaints(result)
    assert result.exit_code == 1 and len(lines) == 3 and not list(folder.rglob("*_labels.png"))
    assert lines[0].startswith("error: a.png: the engine ") and "wrong.onnx gives maps" in lines[0]
    assert said in lines[0] and lines[1:] == [f"error: {name}.png: the engine failed as above" for name in "bc"]


def test_an_engine_whose_labels_are_of_no_segment_is_named(stand_in):
    whole = stand_in._infer
    stand_in._infer = lambda inputs: [whole(inputs)[0], np.ones(1, np.int32)]
    with pytest.raises(DiffSegError, match="the engine StandIn gives labels from 0 to 1, expected 0 to 0"):
        Segmenter(stand_in)(draw(0))


def test_an_error_of_any_kind_is_of_one_clip(folder, monkeypatch, stand_in):
    for name in "abc":
        write_clip(folder / f"{name}.avi", 3, codec="mpeg4")
    whole = ContainerClip.read

    def damaged(self, stop):
        if "b.avi" in self.name:
            raise IndexError("list index out of range")
        yield from whole(self, stop)

    monkeypatch.setattr(ContainerClip, "read", damaged)
    monkeypatch.setenv("DIFFSEG_IN_PROCESS", "1")
    result = run("a.avi", "b.avi", "c.avi", "--output", "out")
    assert result.exit_code == 1 and complaints(result) == ["error: b.avi: IndexError: list index out of range"]
    assert sorted(path.name for path in (folder / "out").glob("*.mp4")) == ["a_overlay.mp4", "c_overlay.mp4"]


def test_names_too_long_for_outputs(folder, stand_in):
    for name in ("a", "b" * 248, "c"):
        cv2.imwrite(f"{name}.png", draw(0))
    shutil.copy("a.png", "d" * 248 + ".png")
    result = run(".", "--output", "out")
    lines = complaints(result)
    assert result.exit_code == 1 and len(lines) == 2 and all("File name too long" in line for line in lines)
    assert {path.name for path in (folder / "out").iterdir()} >= {"a_labels.png", "c_labels.png"}


def test_the_name_of_a_file_is_no_command_to_the_terminal(folder, stand_in):
    Path("in").mkdir()
    Path("in/\x1b[2Ja\u202eb.png").write_bytes(b"no picture")
    Path("in/c\x1b]0;d\x07.mp4").write_bytes(b"no clip")
    done = run("in", "--output", "out")
    assert [line.partition(": ")[2].partition(":")[0] for line in complaints(done)] == [
        r"in/\x1b[2Ja\u202eb.png",
        r"in/c\x1b]0;d\x07.mp4",
    ]
    assert done.stderr.replace("\n", "").isprintable()


def test_a_pipe_among_numbered_pictures_is_not_waited_for(folder):
    os.mkfifo("shot_2.png")
    cv2.imwrite("shot_1.png", draw(0))
    found = []
    source = Source(Path("shot_%d.png"), Path("x"), "sequence")
    asked = threading.Thread(target=lambda: found.append(content_of(source)), daemon=True)
    asked.start()
    asked.join(10)
    assert found and found[0]


def test_the_name_of_a_file_is_no_url(folder, stand_in):
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        name = f"http:127.0.0.1:{server.server_port}?leak=1.mp4"
        write_clip(folder / "clip.mp4", 3)
        (folder / "clip.mp4").rename(folder / name)
        result = run("http*.mp4", "--output", "out")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert result.exit_code == 0 and asked == [], result.stderr


@pytest.mark.parametrize("reader", ["pyav", "opencv"])
@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
    ],
    ids=["ffconcat", "playlist"],
)
def test_a_video_opens_no_other_file(folder, monkeypatch, reader, text):
    write_clip(folder / "secret.mp4", 3)
    write_clip(folder / "secret.ts", 50)
    if reader == "opencv":
        monkeypatch.setitem(sys.modules, "av", None)
    for name in ("list.mp4", "list.mkv"):
        (folder / name).write_text(text)
        with pytest.raises(DiffSegError, match=rf"{name}: is not a video"):
            open_video(Source(Path(name), Path("list"), "video"), OpenOptions())
    for name in ("secret.mp4", "secret.ts"):
        open_video(Source(Path(name), Path("list"), "video"), OpenOptions()).close()
    assert "OPENCV_FFMPEG_CAPTURE_OPTIONS" not in os.environ


def test_small_texts_are_regular_files_of_a_size(tmp_path):
    (tmp_path / "text").write_text("ä")
    assert read_small_text(tmp_path / "text") == "ä"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero"), tmp_path):
        with pytest.raises(DiffSegError, match="cannot read"):
            read_small_text(path)
    before = set(Path("/proc/self/fd").iterdir())
    with contextlib.suppress(DiffSegError):
        read_small_text(tmp_path)
    assert set(Path("/proc/self/fd").iterdir()) == before
    with pytest.raises(DiffSegError, match="at most 1 bytes, found more"):
        read_small_text(tmp_path / "text", most=1)
    (tmp_path / "text").write_bytes(b"\xff")
    with pytest.raises(DiffSegError, match="utf-8"):
        read_small_text(tmp_path / "text")


HOSTILE_FIELDS = {
    "height": [-1, 0, 10**9, True, 256.0, "256", None],
    "width": [7, 1 << 40],
    "batch": [-1, 0, True, 1.5, "1", 10**30],
    "grid": [1, -5, None, 10**9],
    "timestep": [-1, 1e9],
    "thresholds": [[], [0], [-1.0], ["1"], [1e999], [10**400], [True], None, "1.1", [0.5] * 101, [1e-320]],
    "latent_scaling": [0, -1, "1", None, True],
    "levels": [{}, [{}], [[1, 2, 3]], [{"height": -1, "width": 4, "layers": 1}], [None], "abc"],
    "blocks": [[1], "up", {}],
    "weights": [[-1], [1e999], [None], 3],
    "producer": [[], {"torch": 1}, "x"],
    "source": [1, None, "\ud800", "x" * 100_000],
    "head": [[], None, {}],
    "plan": [1, [], {}, {"flavour": 1}],
    "noise_seed": ["1", 10**30],
    "channels": [0, -1, 1.5, "3", True, 10**30],
    "solver": [1, None, [], "\ud800"],
    "schema": [True, 1.5, [[]], None],
}


@pytest.mark.parametrize("name", HOSTILE_FIELDS)
def test_a_description_is_checked_field_by_field(name):
    data = json.loads(sidecar_path(EMBEDDED).read_text())
    for value in HOSTILE_FIELDS[name]:
        with pytest.raises(DiffSegError) as caught:
            EngineSpec.from_json(json.dumps(data | {name: value}), "e.json")
        assert len(str(caught.value)) < 800 and "e.json" in str(caught.value)
    if name not in ("plan", "weights", "grid", "producer", "noise_seed", "channels", "solver"):
        del data[name]
        with pytest.raises(DiffSegError):
            EngineSpec.from_json(json.dumps(data), "e.json")


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"schema":' * 50_000, '{"schema": Infinity}', '{"schema": 1' + "0" * 9000 + "}", "NaN"]
)
def test_a_text_that_breaks_parsers_is_one_line(tmp_path, text):
    engine = write_uniform_engine(tmp_path / "e.onnx")
    sidecar_path(engine).write_text(text)
    with pytest.raises(DiffSegError, match=r"e\.onnx\.json"):
        open_engine(engine, "cpu", "onnxruntime")


def test_links_that_go_round_are_entered_once(folder):
    (folder / "in" / "deep").mkdir(parents=True)
    cv2.imwrite("in/a.png", draw(0))
    cv2.imwrite("in/deep/b.png", draw(0))
    cv2.imwrite("in/.hidden.png", draw(0))
    for name in ("one", "two", "three"):
        (folder / "in" / "deep" / name).symlink_to("..")
    (folder / "elsewhere").mkdir()
    cv2.imwrite("elsewhere/c.png", draw(0))
    (folder / "in" / "linked").symlink_to("../elsewhere")
    for pattern in ("in/**/*.png", "in/**", "**/*.png", f"{folder}/in/**/*.p?g", "in/**/**/*.png"):
        sources, failures = find_sources([pattern])
        assert failures == []
        assert sorted(source.path.name for source in sources) == ["a.png", "b.png", "c.png"], pattern
    assert [source.path.name for source in find_sources(["in/**/deep/*.png"])[0]] == ["b.png"]


@pytest.mark.parametrize("closed", [*(pytest.param(one, marks=pytest.mark.slow) for one in "012"), "012"])
def test_closed_descriptors(folder, closed):
    cv2.imwrite("a.png", draw(0))
    program = f"""
import os
for number in {closed!r}:
    os.close(int(number))
import sys
os.execv(sys.executable, [sys.executable, "-m", "runtime.segment", "a.png", "--output", "out", "--device", "cpu"])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a_labels.png", "a_overlay.png"]


@pytest.mark.slow
def test_lines_for_programs_need_a_standard_output(folder):
    cv2.imwrite("a.png", draw(0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m runtime.segment a.png --json --device cpu >&-"
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "standard output" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_temporary_files_of_killed_runs_are_removed_and_no_others(tmp_path):
    program = (
        "import os, pathlib; from runtime.files import new_folder, part_path; part_path(pathlib.Path('x')).touch();"
        "held = new_folder(pathlib.Path('y')); held.__enter__().joinpath('z').touch(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    killed, folder = sorted(tmp_path.glob(".*.part"), key=Path.is_dir)
    assert [path.name for path in folder.iterdir()] == ["z"]
    ours, parent = part_path(tmp_path / "a.png"), part_path(tmp_path / "b.png")
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with_its_number = killed.with_name(killed.name.replace(killed.name.split("-")[1], str(sleeper.pid), 1))
        foreign = killed.with_name(f".{'0' * 8}-{'-'.join(killed.name.split('-')[1:])}")
        old = foreign.with_name(foreign.name.replace("0" * 8, "1" * 8))
        strangers = [tmp_path / name for name in ("mine.part", ".notes.part", f".{'a' * 32}.part", "photo.png")]
        for path in (ours, parent, with_its_number, foreign, old, *strangers):
            path.touch()
        os.utime(old, (1e9, 1e9))
        kept = {ours, parent, foreign, *strangers}
        sweep_parts(tmp_path)
    finally:
        sleeper.communicate(b"\n")
    assert set(tmp_path.iterdir()) == kept


def test_a_new_folder_is_whole_or_none(tmp_path):
    for end in (OSError("the disk is full"), KeyboardInterrupt()):
        with pytest.raises(type(end)), new_folder(tmp_path / "a" / "b" / "c") as part:
            (part / "file").touch()
            raise end
        assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError), new_folder(tmp_path / "a" / "b" / "c"):
        (tmp_path / "a" / "b" / "c").touch()  # somebody else was faster
    assert (tmp_path / "a" / "b" / "c").is_file() and len(list((tmp_path / "a" / "b").iterdir())) == 1
    with pytest.raises(DiffSegError, match="c: exists and is not an empty folder"), new_folder(tmp_path / "a/b/c"):
        pass
    with new_folder(tmp_path / "a" / "d") as part:
        (part / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "d").iterdir()] == ["file"]


@pytest.mark.parametrize("option", ["--rate", "--start", "--end"])
@pytest.mark.parametrize("value", ["1e99999999", "9" * 5000, "1e-99999999", "1/0", "nan", "inf", "\u0661"])
def test_numbers_that_take_for_ever(folder, stand_in, option, value):
    write_clip(folder / "a.avi", 2, codec="mpeg4")
    result = run("a.avi", option, value)
    assert result.exit_code == 2 and option in complaints(result)[0]


@pytest.mark.parametrize("value", [1e-320, 1e-31, 1e39, 1e308])
def test_thresholds_that_float32_does_not_hold(value):
    """The smallest were 0 / 0, which gave one segment."""
    with pytest.raises(ValueError, match=r"thresholds: expected .* above 0 .*1e-30 to 1e\+30"):
        MergeConfig((value, 1.0, 1.0))
    with pytest.raises(ValueError, match="thresholds: expected at most 100, found 101"):
        MergeConfig((0.5,) * 101)


def test_weights_whose_sum_is_infinite():
    assert resolution_ratios((1e308, 1e308), [(4, 4), (2, 2)]) == [0.5, 0.5]


def external(path, location):
    """An ONNX file whose one tensor is in another file, inside a graph of an attribute."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    node = helper.make_node("Constant", [], ["w"], value=tensor)
    inner = helper.make_graph([node], "inner", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [branch],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_external_data_stays_in_the_folder(tmp_path):
    inside = tmp_path / "engines"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (inside / "e.onnx.data").write_bytes(bytes(16))
    (inside / "link.data").symlink_to("../secret.bin")
    (inside / "near.data").symlink_to("e.onnx.data")
    os.mkfifo(inside / "pipe.data")
    for location in ("e.onnx.data", "./e.onnx.data", "near.data", "missing.data"):
        check_external_data(external(inside / "e.onnx", location))
    for location in (
        *("../secret.bin", str(tmp_path / "secret.bin"), "link.data", "/dev/zero", "pipe.data", "a/../../secret.bin"),
        *("C:\\secret.bin", "..\\secret.bin", "\\\\server\\secret.bin"),
    ):
        path = external(inside / "e.onnx", location)
        assert onnx.load(path, load_external_data=False)
        with pytest.raises(DiffSegError, match=r"e\.onnx has weights in .*own folder"):
            open_engine(path, "cpu")
        # Neither a group that ONNX does not have, before it, nor damage behind it hides anything.
        path.write_bytes(b"\x1b\x1c" + path.read_bytes() + b"\xff\xff")
        with pytest.raises(DiffSegError, match=r"e\.onnx has weights in"):
            check_external_data(path)
    for data in (b"", b"\xff" * 100, bytes(100)):
        (inside / "e.onnx").write_bytes(data)
        check_external_data(inside / "e.onnx")
    check_external_data(EMBEDDED)

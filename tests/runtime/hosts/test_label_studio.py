"""The backend answers as Label Studio asks; its package reads the brushes, and they are the segments."""

import base64
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from runtime import Segmenter
from runtime.hosts.label_studio import Backend, encode_brush, server

ROOT = Path(__file__).parents[3]
CAT = np.ascontiguousarray(data.chelsea()[::2, ::2, ::-1])
PNG = cv2.imencode(".png", CAT)[1].tobytes()
CONFIG = """<View>
  <Image name="photo" value="$picture"/>
  <BrushLabels name="brush" toName="photo"><Label value="cat"/><Label value="segment"/></BrushLabels>
</View>"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A server whose folder has one picture, `sub/cat.png`, and a secret beside the folder."""
    folder = tmp_path_factory.mktemp("pictures") / "inside"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "cat.png").write_bytes(PNG)
    (folder.parent / "secret.png").write_bytes(PNG)
    with server(Backend(Segmenter.open(), folder), "127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


def ask(address, path, body=None, raw=None):
    """Status and JSON of the answer."""
    sent = raw if raw is not None else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, sent, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def task(picture, number=1):
    return {"id": number, "data": {"picture": picture}}


def decode(rle):
    """Written from the format's description: bits of counts and lengths, most significant first."""
    bits = np.unpackbits(np.array(rle, np.uint8))
    at = 0

    def read(count):
        nonlocal at
        at += count
        return int("".join(map(str, bits[at - count : at])), 2)

    count, word, sizes = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
    values = []
    while len(values) < count:
        run = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if run else [read(word) for _ in range(length)]
    return np.array(values, np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_a_brush_is_the_mask(seed):
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random(rng.integers(1, 9, 2)) > 0.5, np.ones((seed + 1, 7), bool)) > 0
    assert np.array_equal(decode(encode_brush(mask)).reshape(*mask.shape, 4), np.dstack([mask] * 4) * 255)
    long = np.zeros((200, 100), bool)
    long[seed:] = True
    assert np.array_equal(decode(encode_brush(long))[3::4].reshape(long.shape), long * 255)


def test_health_and_setup(address):
    assert ask(address, "/health") == (200, {"status": "UP", "model_class": "DiffSeg"})
    assert ask(address, "/")[0] == 200
    status, found = ask(address, "/setup", {"project": "1.2", "schema": CONFIG})
    assert status == 200 and found["model_version"].startswith("diffseg ")
    assert ask(address, "/webhook", {"action": "ANNOTATION_CREATED"}) == (200, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "picture",
    [
        "sub/cat.png",
        "/data/upload/sub/cat.png",
        "/data/local-files/?d=sub/cat.png",
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
    ],
)
def test_predictions_are_the_segments(address, picture):
    status, answer = ask(address, "/predict", {"tasks": [task(picture)], "label_config": CONFIG, "params": {}})
    assert status == 200, answer
    (prediction,) = answer["results"]
    labels = Segmenter.open()(CAT).labels
    assert len(prediction["result"]) == labels.max() + 1 and prediction["model_version"].startswith("diffseg")
    for index, region in enumerate(prediction["result"]):
        assert (region["from_name"], region["to_name"], region["type"]) == ("brush", "photo", "brushlabels")
        assert (region["original_height"], region["original_width"]) == labels.shape
        assert region["value"]["brushlabels"] == ["segment"] and region["value"]["format"] == "rle"
        alpha = decode(region["value"]["rle"])[3::4].reshape(labels.shape)
        assert np.array_equal(alpha == 255, labels == index)


def test_label_studios_own_package_reads_them(address):
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    _, answer = ask(address, "/predict", {"tasks": [task("sub/cat.png")], "label_config": CONFIG})
    (prediction,) = answer["results"]
    assert interface.LabelInterface(CONFIG).validate_prediction(prediction)
    labels = Segmenter.open()(CAT).labels
    for index, region in enumerate(prediction["result"]):
        mask = brush.decode_rle(region["value"]["rle"]).reshape(*labels.shape, 4)[..., 3]
        assert np.array_equal(mask == 255, labels == index)


def test_the_first_label_where_none_has_the_name(address):
    config = CONFIG.replace("segment", "dog")
    _, answer = ask(address, "/predict", {"tasks": [task("sub/cat.png")], "label_config": config})
    assert answer["results"][0]["result"][0]["value"]["brushlabels"] == ["cat"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (None, "found no list of tasks"),
        ({"tasks": 3}, "found no list of tasks"),
        ({"tasks": [task("sub/cat.png")], "label_config": "<View"}, "label_config: expected Label Studio's XML"),
        ({"tasks": [task("sub/cat.png")], "label_config": "<View/>"}, "expected <BrushLabels> with a <Label>"),
        ({"tasks": [{"id": 4, "data": {}}], "label_config": CONFIG}, "task 4: expected data.picture, the address of"),
        (
            {"tasks": [task("none.png")], "label_config": CONFIG},
            "none.png: cannot be read; expected a URL",
        ),
        ({"tasks": [task("../secret.png")], "label_config": CONFIG}, "../secret.png: cannot be read; expected"),
        ({"tasks": [task("http://[/x.png")], "label_config": CONFIG}, "http://[/x.png: cannot be read"),
        ({"tasks": [task("file:///etc/passwd")], "label_config": CONFIG}, "file:///etc/passwd: cannot be read"),
        (
            {"tasks": [task("http://127.0.0.1:9/x.png")], "label_config": CONFIG},
            "/x.png: cannot be read",
        ),
        ({"tasks": [task("data:image/png;base64,AAAA")], "label_config": CONFIG}, "is not an image that OpenCV can"),
    ],
)
def test_bad_requests_are_one_line(address, body, text):
    status, answer = ask(address, "/predict", body, raw=b"null" if body is None else None)
    assert status == 400 and text in answer["error"] and "\n" not in answer["error"]


def test_what_is_no_json_and_what_is_not_there(address):
    assert ask(address, "/predict", raw=b"{")[0] == 400
    assert ask(address, "/predict", raw=b"[" * 100_000)[0] == 400
    status, answer = ask(address, "/train", {})
    assert status == 404 and answer["error"] == "expected /health, /setup or /predict, found POST /train"


@pytest.mark.slow
def test_as_a_program_it_says_where_it_listens():
    command = [sys.executable, "-m", "runtime.hosts.label_studio", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        assert ask(line.split()[-1], "/health")[1]["status"] == "UP"
        port = line.rsplit(":", 1)[1].strip()
        other = subprocess.run([*command[:-1], port], cwd=ROOT, capture_output=True, text=True)
        assert other.returncode == 1 and other.stderr.startswith(f"error: --port {port}: cannot listen on 127.0.0.1")
        process.terminate()

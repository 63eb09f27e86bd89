"""POST /segment: forms of answers, parameters, and every bad request as a status and one line."""

import base64
import json
import struct
import zlib

import cv2
import numpy as np
import pytest

from runtime.outputs.coco import dataset
from runtime.outputs.draw import draw_overlay
from runtime.segmenter import Segmenter
from tests.conftest import ROOT
from tests.runtime.serve.conftest import Bright, decoded, picture

SCENE = (ROOT / "tools" / "pictures" / "scene.png").read_bytes()
PNG = {"Content-Type": "image/png"}


def test_labels_are_those_of_the_segmenter(tiny):
    expected = tiny.segmenter(cv2.imdecode(np.frombuffer(SCENE, np.uint8), 1))
    status, headers, body = tiny.ask("POST", "/segment", SCENE, **PNG)
    assert (status, headers["content-type"]) == (200, "image/png")
    assert np.array_equal(decoded(body), expected.labels) and headers["x-segments"] == str(expected.count)


def test_forms(service):
    expected = Segmenter(Bright())(cv2.imdecode(np.frombuffer(SCENE, np.uint8), 1), keep_frame=True)

    def ask(form):
        status, _, body = service.ask("POST", f"/segment?format={form}", SCENE, **PNG)
        assert status == 200
        return body

    assert np.array_equal(decoded(ask("overlay")), draw_overlay(expected.frame, expected.labels))
    assert json.loads(ask("coco")) == dataset(expected.labels, "picture")
    panoptic = json.loads(ask("panoptic"))["annotations"][0]
    ids = decoded(base64.b64decode(panoptic["png"]))[..., ::-1]
    wanted, segments = expected.to_panoptic()
    assert np.array_equal(ids, wanted) and panoptic["segments_info"] == segments
    assert json.loads(ask("regions"))["regions"] == expected.to_json()["regions"]
    assert len(json.loads(ask("polygons"))["features"]) == expected.count
    assert len(ask("yolo").splitlines()) >= expected.count


@pytest.mark.slow
def test_parameters_are_those_of_the_segmenter(tiny, embedded_stays_open):
    frame = cv2.imdecode(np.frombuffer(SCENE, np.uint8), 1)
    for query, options in (
        ("threshold=0.8&min_area=0.01", {"thresholds": 0.8, "min_area": 0.01}),
        ("threshold=0.6,0.5,0.4&refine=snap", {"thresholds": (0.6, 0.5, 0.4), "refine": "snap"}),
        ("threshold=auto", {"thresholds": "auto"}),
    ):
        wanted = Segmenter.open(device="cpu", backend="onnxruntime", **options, options={"threads": 1})(frame).labels
        status, _, body = tiny.ask("POST", f"/segment?{query}", SCENE, **PNG)
        assert status == 200 and np.array_equal(decoded(body), wanted), query


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("", "image/png"),
        ("*/*", "image/png"),
        ("application/json", "application/json"),
        ("text/html, application/json;q=0.5, image/png;q=0.2", "application/json"),
        ("image/*", "image/png"),
        ("application/geo+json", "application/geo+json"),
    ],
)
def test_accept_chooses_the_form(service, accept, media):
    status, headers, _ = service.ask("POST", "/segment", picture(), Accept=accept)
    assert (status, headers["content-type"]) == (200, media)


def form(parts, boundary="x"):
    lines = []
    for name, value in parts:
        file = '; filename="a.png"' if isinstance(value, bytes) else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        lines.append(head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n")
    return b"".join(lines) + f"--{boundary}--\r\n".encode()


MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}


def test_a_form_has_a_file_and_fields(service):
    body = form([("file", picture(5)), ("threshold", "1.7"), ("format", "labels")])
    status, _, answer = service.ask("POST", "/segment", body, **MULTIPART)
    assert status == 200 and not decoded(answer).any()  # 200 is below 1.7 × 128
    assert decoded(service.ask("POST", "/segment", form([("any", picture(5))]), **MULTIPART)[2]).any()


def huge():
    """A PNG of a few bytes that declares 60,000 × 60,000 pixels."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


GOOD = picture()
BAD = {
    "another type": ("/segment", GOOD, {"Content-Type": "text/html"}, 415, "Content-Type: expected image/"),
    "no picture": ("/segment", b"hello" * 20, PNG, 415, "not an image"),
    "cut short": ("/segment", GOOD[:-20], PNG, 400, "cut short"),
    "JPEG cut short": ("/segment", picture(end=".jpg")[:-30], {}, 400, "cut short"),
    "damaged": ("/segment", GOOD[:60] + bytes(40) + GOOD[-20:], PNG, 400, "picture"),
    "60,000 × 60,000": ("/segment", huge(), PNG, 413, "million pixels"),
    "empty": ("/segment", b"", PNG, 400, "expected a body, found none"),
    "too long": ("/segment", bytes((1 << 20) + 1), PNG, 413, "at most 1048576 bytes"),
    "compressed": ("/segment", GOOD, {"Content-Encoding": "gzip"}, 415, "Content-Encoding"),
    "parameter": ("/segment?treshold=1", GOOD, PNG, 400, "found 'treshold'"),
    "twice": ("/segment?threshold=1&threshold=2", GOOD, PNG, 400, "threshold: expected one value"),
    "format": ("/segment?format=gif", GOOD, PNG, 400, "format: expected one of labels, overlay"),
    "threshold 0": ("/segment?threshold=0", GOOD, PNG, 400, "threshold: expected one finite number above 0"),
    "threshold nan": ("/segment?threshold=nan", GOOD, PNG, 400, "threshold: expected"),
    "threshold text": ("/segment?threshold=high", GOOD, PNG, 400, "threshold: expected a number above 0"),
    "three thresholds": ("/segment?threshold=1,1,1", GOOD, PNG, 400, "iterations"),
    "auto": ("/segment?threshold=auto", GOOD, PNG, 400, "labels"),
    "refine": ("/segment?refine=sharpen", GOOD, PNG, 400, "refine: expected"),
    "area": ("/segment?min_area=-1", GOOD, PNG, 400, "min_area: expected"),
    "accept": ("/segment", GOOD, {"Accept": "text/html"}, 406, "Accept: expected"),
    "path": ("/segments", GOOD, PNG, 404, "no such path /segments"),
    "method": ("/metrics", GOOD, PNG, 405, "POST is not for /metrics"),
    "form without file": ("/segment", form([("threshold", "1")]), MULTIPART, 400, "a form with a file"),
    "form of two files": ("/segment", form([("a", GOOD), ("b", GOOD)]), MULTIPART, 400, "one file"),
    "form's field": ("/segment", form([("a", GOOD), ("x", "1")]), MULTIPART, 400, "found 'x'"),
    "form's field twice": (
        "/segment",
        form([("a", GOOD), ("threshold", "1"), ("threshold", "2")]),
        MULTIPART,
        400,
        "threshold: expected one value",
    ),
    "form's value": ("/segment", form([("a", GOOD), ("threshold", "x")]), MULTIPART, 400, "threshold: expected"),
    "no form": ("/segment", b"garbage", MULTIPART, 400, "expected a form"),
    "boundary": ("/segment", b"garbage", {"Content-Type": "multipart/form-data"}, 400, "expected a form"),
    "engine": ("/segment", cv2.imencode(".png", np.full((9, 9, 3), 13, np.uint8))[1].tobytes(), PNG, 500, "bus"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_one_line(service, name):
    path, body, headers, status, text = BAD[name]
    found, answer = service.json("POST", path, body, **headers)
    assert found == status and list(answer) == ["error"]
    assert text in answer["error"] and "\n" not in answer["error"] and "Traceback" not in answer["error"]
    assert service.ask("POST", "/segment", GOOD)[0] == 200  # it goes on
    assert service.metric("diffseg_queue_frames") == 0


def test_a_body_without_a_length_has_a_limit_too(service):
    status, answer = service.json("POST", "/segment", iter([bytes(1 << 19)] * 4))
    assert status == 413 and "1048576 bytes" in answer["error"]

"""The WebSocket: identities of a clip, one answer for each frame, and clips that know nothing of each other."""

import json

import cv2
import numpy as np
import pytest

from runtime.segmenter import Segmenter
from tests.runtime.clips import draw
from tests.runtime.serve.conftest import Bright, decoded, served

sync = pytest.importorskip("websockets.sync.client")
pytest.importorskip("scipy")
FRAMES = [draw(number) for number in range(6)]
PNGS = [cv2.imencode(".png", frame)[1].tobytes() for frame in FRAMES]


def connect(service, query="", **options):
    return sync.connect(f"ws://127.0.0.1:{service.port}/clip{query}", **options)


def answer(socket, data):
    socket.send(data)
    line = json.loads(socket.recv())
    return (line, None) if "error" in line else (line, decoded(socket.recv()))


@pytest.mark.slow
def test_labels_are_the_identities_of_a_stream(service):
    wanted = [result.labels for result in Segmenter(Bright()).stream(FRAMES)]
    with connect(service) as one, connect(service) as other:
        for number, png in enumerate(PNGS):
            line, labels = answer(one, png)
            assert np.array_equal(labels, wanted[number]) and line["frame"] == number
            if number % 2 == 0:  # another clip has frames and identities of its own
                line, _ = answer(other, PNGS[-1 - number])
                assert line["frame"] == number // 2
    with connect(service, "?format=regions&every=2") as socket:
        socket.send(PNGS[0])
        assert json.loads(socket.recv())["identities"] == [0, 1]


def test_a_bad_frame_is_an_error_of_its_own(service):
    with connect(service) as socket:
        assert answer(socket, PNGS[0])[0]["frame"] == 0
        assert answer(socket, b"hello")[0]["status"] == 415
        line, _ = answer(socket, PNGS[0][:-30])
        assert line["status"] == 400 and "cut short" in line["error"]
        assert answer(socket, PNGS[1])[0]["frame"] == 1


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("?every=0", "every: expected"),
        ("?every=x", "every: expected"),
        ("?every=inf", "every"),
        ("?skip_similar=yes", "skip_similar: expected 0 or 1"),
        ("?warm_start=1", "warm start"),
        ("?threshold=0", "threshold: expected"),
        ("?format=x", "format: expected"),
        ("?speed=1", "found 'speed'"),
    ],
)
def test_bad_parameters_are_said_and_end_it(service, query, text):
    with connect(service, query) as socket:
        assert text in json.loads(socket.recv())["error"]
        with pytest.raises(Exception, match="1008"):
            socket.recv()


def test_text_and_too_many_clips_are_refused():
    with served(Bright(), clips=1, token="t") as service:
        with pytest.raises(Exception, match=r"403|401"):
            connect(service)
        may = {"additional_headers": {"Authorization": "Bearer t"}}
        with connect(service, **may) as socket:
            with connect(service, **may) as second:
                assert "the limit" in json.loads(second.recv())["error"]
                with pytest.raises(Exception, match="1013"):
                    second.recv()
            socket.send("hello")
            assert "found text" in json.loads(socket.recv())["error"]


def test_an_engine_that_fails_ends_the_clip_and_not_the_service(service):
    with connect(service) as socket:
        line, _ = answer(socket, cv2.imencode(".png", np.full((9, 9, 3), 13, np.uint8))[1].tobytes())
        assert line["status"] == 500 and "bus" in line["error"]
    with connect(service) as socket:
        assert answer(socket, PNGS[0])[0]["frame"] == 0

"""A service in a thread, with a stand-in for the engine; skipped where the extra `serve` is missing."""

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.segmenter import Segmenter
from tests.runtime.clips import StandIn

for package in ("fastapi", "uvicorn", "python_multipart", "websockets", "prometheus_client", "pycocotools"):
    pytest.importorskip(package)


class Bright(StandIn):
    """Segments by brightness above 128 times the threshold. `hold`: the network waits while it is not set."""

    def __init__(self, seconds=0.0, batch=1, at_once=1):
        super().__init__(seconds, batch)
        self.path, self.backend = Path("bright.onnx"), "stand-in"
        self.batches, self.hold, self.at_once = [], threading.Event(), at_once
        self.hold.set()

    frames_at_once = property(lambda self: self.at_once)

    def prefetch(self, frames):
        """A batch that was announced may never come: nobody waits for its frames any more."""

    def _infer(self, inputs):
        self.batches.append(len(inputs["frame"]))
        assert self.hold.wait(20)
        self.calls += len(inputs["frame"])
        threading.Event().wait(self.seconds * len(inputs["frame"]))
        if any((frame == 13).all() for frame in inputs["frame"]):
            raise RuntimeError("the card fell off the bus")
        bright = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) > 128 * inputs["thresholds"][0] for frame in inputs["frame"]]
        return [np.array(bright, np.uint8), np.full(len(bright), 2, np.int32)]

    def clone(self):
        return self


class Service:
    """A running service. `address`, `port`; `log`: its lines; `engine`: the first one."""

    def __init__(self, engine, port, log, app):
        self.engine, self.port, self._log, self.app = engine, port, log, app
        self.address = f"http://127.0.0.1:{port}"

    @property
    def log(self):
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def ask(self, method, path, body=None, timeout=20, **headers):
        """Status, headers by lower-case name, and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, *arguments, **options):
        """Status and the JSON of the answer."""
        status, _, body = self.ask(*arguments, **options)
        return status, json.loads(body)

    def metric(self, name):
        text = self.ask("GET", "/metrics")[2].decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


@contextmanager
def served(engine, segmenter=None, buffer=None, **settings):
    """A service around an engine, until the end of the block. `buffer`: bytes that wait for a reader."""
    from runtime.serve.app import create_app
    from runtime.serve.listen import bind, server
    from runtime.serve.settings import Settings

    log, settings = StringIO(), Settings(**settings)
    app = create_app([segmenter or Segmenter(engine)], settings, log=log)
    listening = bind("127.0.0.1", 0)
    if buffer:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    running = server(app, settings)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not running.started:
        threading.Event().wait(0.01)
    try:
        yield Service(engine, listening.getsockname()[1], log, app)
    finally:
        running.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def service():
    with served(Bright(), most_bytes=1 << 20) as found:
        yield found


@pytest.fixture(scope="session")
def tiny():
    """A service around the embedded engine."""
    segmenter = Segmenter.open(device="cpu", backend="onnxruntime", options={"threads": 1})
    with served(segmenter.engine, segmenter) as found:
        found.segmenter = segmenter.clone()
        yield found


def until(true, seconds=10):
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def picture(number=0, size=(40, 60), end=".png"):
    """An encoded picture whose bright part has its own width."""
    frame = np.zeros((*size, 3), np.uint8)
    frame[:, : 10 + number % 40] = 200
    return cv2.imencode(end, frame)[1].tobytes()


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)

"""The command: what is wrong is said before it listens, and SIGTERM lets it finish what it has accepted."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from typer.testing import CliRunner

from runtime.serve.__main__ import app
from tests.conftest import ROOT
from tests.runtime.serve.conftest import picture


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--engine", "missing.onnx"], "no engine missing.onnx"),
        (["--engine", str(ROOT / "pyproject.toml")], "expected an engine that ends in"),
        (["--host", "0.0.0.0"], "expected a --token"),
        (["--host", "203.0.113.9", "--token", "x"], "--port 8000: cannot listen there"),
        (["--host", "256.1.1.1", "--token", "x"], "--host 256.1.1.1: expected an address of this machine"),
        (["--device", "cuda:x"], "unknown device"),
        (["--threshold", "0"], "--threshold: expected one finite number above 0"),
        (["--threshold", "x"], "--threshold: expected a number above 0"),
        (["--refine", "x"], "--refine: expected"),
        (["--max-pixels", "0"], "--max-pixels: expected"),
    ],
)
@pytest.mark.slow
def test_what_is_wrong_is_one_line(words, text, embedded_stays_open):
    result = CliRunner().invoke(app, words)
    assert result.exit_code in (1, 2) and len(result.stderr.splitlines()) == 1
    assert text in result.stderr


def test_a_port_in_use_is_one_line(embedded_stays_open):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(app, ["--port", str(taken.getsockname()[1])])
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "cannot listen there (Address already in use)" in result.stderr


@pytest.mark.slow
def test_sigterm_finishes_what_was_accepted_and_exits_0(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.serve", "--port", "0", "--threads", "1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(re.search(r":(\d+)$", process.stderr.readline().strip())[1])
        answers = []

        def ask():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/segment", picture(size=(300, 300)))
            answers.append(connection.getresponse().status)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        health = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            health.request("GET", "/metrics")
            if b"diffseg_queue_frames 4.0" in health.getresponse().read() or answers:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert answers == [200] * 4 and "Traceback" not in err
    assert [json.loads(line)["status"] for line in out.splitlines()].count(200) >= 4

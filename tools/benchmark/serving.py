"""A service and its clients, each in a process of its own, for `python -m tools.benchmark serve`."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.benchmark.common import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT = 300  # seconds for an answer


class Served:
    """A service in a process of its own. `port`; `memory()`: what it has resident now, in MB."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process, self.port = process, port

    def memory(self) -> float:
        """Resident MB."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmRSS:"))

    def processor(self) -> float:
        """Processor seconds it has taken so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """End it as an orchestrator does; its exit status."""
        self._process.terminate()
        return self._process.wait(60)


@contextmanager
def service(engine: str, sleep: float, **settings: Any) -> Iterator[Served]:
    """A service around an engine of `tools.benchmark.streams.open_segmenter`."""
    words = json.dumps([engine, sleep, settings])
    command = [sys.executable, "-c", "from tools.benchmark.serving import _serve; _serve()", words]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = ""
        while not line.startswith("listening on"):
            line = process.stderr.readline()
            if not line:
                sys.exit("error: the service did not start")
        served = Served(process, int(line.rpartition(":")[2]))
        yield served
        if (status := served.stop()) != 0:
            sys.exit(f"error: expected the service to exit with 0 after SIGTERM, found {status}")
    finally:
        process.kill()
        process.wait()


def _serve() -> None:
    """The service's process."""
    from runtime.serve.__main__ import serve
    from runtime.serve.settings import Settings
    from tools.benchmark.streams import open_segmenter

    engine, sleep, settings = json.loads(sys.argv[1])
    serve([open_segmenter(engine, sleep)], Settings(**settings), 0, None)


def load(port: int, folder: str, clients: int, count: int, path: str = "/segment") -> dict[str, Any]:
    """Send the pictures of a folder in turns, `count` requests, from `clients` connections that are kept open.

    Returns the wall and processor seconds, the sorted latencies in milliseconds, how often each status came (0: none),
    and whether every picture had the same answer each time.
    """
    pictures = [file.read_bytes() for file in sorted(Path(folder).iterdir())]
    numbers, lock = iter(range(count)), threading.Lock()
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    answers: dict[int, set[int]] = {}

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            which = number % len(pictures)
            begun, status, body = time.perf_counter(), 0, b""
            try:
                connection.request("POST", path, pictures[which])
                answer = connection.getresponse()
                status, body = answer.status, answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
            with lock:
                statuses[status] += 1
                if status == 200:
                    latencies.append((time.perf_counter() - begun) * 1e3)
                    answers.setdefault(which, set()).add(hash(body))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    start, spent = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "seconds": time.perf_counter() - start,
        "processor": time.process_time() - spent,
        "latencies": sorted(latencies),
        "statuses": {str(status): number for status, number in statuses.items()},
        "same": all(len(found) == 1 for found in answers.values()),
    }

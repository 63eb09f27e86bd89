"""Many requests at once: batches, a full queue, time limits, clients that leave, and nobody sees another's picture."""

import gc
import http.client
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from tests.runtime.serve.conftest import Bright, decoded, picture, served, until


def together(service, requests, at_once=16):
    """Answers to (path, body), asked at the same time."""
    with ThreadPoolExecutor(at_once) as threads:
        return list(threads.map(lambda one: service.ask("POST", one[0], one[1]), requests))


def test_requests_that_arrive_together_are_batched_and_each_gets_its_own():
    with served(Bright(seconds=0.005, batch=None, at_once=4)) as service:
        service.ask("POST", "/segment", picture(end=".bmp"))
        assert service.engine.batches == [1]  # which waited for no others
        service.engine.hold.clear()
        with ThreadPoolExecutor(1) as aside:
            answers = aside.submit(together, service, [("/segment", picture(n, (32, 32), ".bmp")) for n in range(16)])
            until(lambda: service.metric("diffseg_queue_frames") == 16)
            service.engine.hold.set()
            for number, (status, _, body) in enumerate(answers.result()):
                assert status == 200
                assert decoded(body)[0].sum() in (10 + number, 22 - number), number  # bright or dark is segment 1
        assert max(service.engine.batches) == 4 and len(service.engine.batches) < 12


def test_options_of_one_request_do_not_reach_another():
    with served(Bright(batch=None, at_once=4)) as service:
        requests = [(f"/segment?threshold={(0.5, 1.9)[n % 2]}", picture(n // 2)) for n in range(40)]
        for number, (status, headers, body) in enumerate(together(service, requests)):
            assert status == 200 and headers["x-segments"] == ("2" if number % 2 == 0 else "1")
            assert decoded(body).any() == (number % 2 == 0)


def test_a_request_that_fails_harms_no_other():
    bad = cv2.imencode(".png", np.full((9, 9, 3), 13, np.uint8))[1].tobytes()
    with served(Bright(batch=None, at_once=4)) as service:
        requests = [("/segment", (picture(n), bad, b"\x89PNG\r\n\x1a\nno")[n % 3]) for n in range(24)]
        assert [answer[0] for answer in together(service, requests)] == [200, 500, 400] * 8


def test_a_full_queue_answers_503_at_once():
    with served(Bright(), queue=5) as service:
        service.engine.hold.clear()
        with ThreadPoolExecutor(1) as aside:
            answers = aside.submit(together, service, [("/segment", picture(n)) for n in range(12)], 12)
            until(lambda: service.metric('diffseg_requests_total{route="/segment",status="503"}') == 7)
            assert service.ask("GET", "/v2/health/ready")[0] == 200
            service.engine.hold.set()
            found = answers.result()
        assert sorted(status for status, _, _ in found) == [200] * 5 + [503] * 7
        assert all(int(headers["retry-after"]) >= 1 for status, headers, _ in found if status == 503)
        assert service.ask("POST", "/segment", picture())[0] == 200
        assert service.metric("diffseg_queue_frames") == 0


def test_time_is_limited_and_what_nobody_waits_for_is_left_out():
    with served(Bright(), seconds=0.2) as service:
        service.engine.hold.clear()
        found = together(service, [("/segment", picture(n)) for n in range(8)])
        assert [status for status, _, _ in found] == [504] * 8
        service.engine.hold.set()
        until(lambda: service.metric("diffseg_queue_frames") == 0)
        assert service.engine.calls <= 1  # what the network had begun
        assert service.ask("POST", "/segment", picture())[0] == 200


def test_a_client_that_goes_away_costs_nothing_more(caplog):
    with served(Bright()) as service:
        service.engine.hold.clear()
        clients = [http.client.HTTPConnection("127.0.0.1", service.port) for _ in range(6)]
        for client in clients:
            client.request("POST", "/segment", picture())
        until(lambda: service.metric("diffseg_queue_frames") == 6)
        for client in clients:
            client.close()
        until(lambda: service.metric("diffseg_clients_gone_total") == 6)
        service.engine.hold.set()
        until(lambda: service.metric("diffseg_queue_frames") == 0)
        assert service.engine.calls <= 1
        assert {line["status"] for line in service.log if line["path"] == "/segment"} == {499}
    gc.collect()  # asyncio complains of what nobody has looked at when it is gone
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_a_stage_that_breaks_harms_only_what_is_inside():
    with served(Bright()) as service:

        def broken(*arguments):
            raise ModuleNotFoundError("No module named 'cut'", name="cut")

        stages = service.app.app.state.desk.segmenter.stages
        kept, stages.network = stages.network, broken
        status, answer = service.json("POST", "/segment", picture())
        assert status in (400, 500) and "cut" in answer["error"]
        stages.network = kept
        assert service.ask("POST", "/segment", picture())[0] == 200


def test_a_worker_for_each_device():
    import asyncio

    from runtime.segmenter import Segmenter
    from runtime.serve.asked import job_of
    from runtime.serve.desk import Desk, Options
    from runtime.serve.forms import NAMES
    from runtime.serve.metrics import Metrics
    from runtime.serve.settings import Settings

    engines = [Bright(), Bright()]

    async def main():
        desk = Desk([Segmenter(engine) for engine in engines], Settings(), Metrics(1))
        for engine in engines:
            engine.hold.clear()
        jobs = [job_of(NAMES["labels"], data=picture(n)) for n in range(4)]
        work = [asyncio.ensure_future(desk.segment([job], Options())) for job in jobs]
        while sum(len(engine.batches) for engine in engines) < 2:
            await asyncio.sleep(0.01)
        for engine in engines:
            engine.hold.set()
        await asyncio.gather(*work)
        await asyncio.to_thread(desk.close)

    asyncio.run(main())
    assert [engine.calls for engine in engines] == [2, 2]


@pytest.mark.parametrize("kind", ["head", "body", "reader"])
@pytest.mark.slow
def test_slow_clients_are_left(kind):
    import socket

    with served(Bright(), slowest=1 if kind == "reader" else 0.3, buffer=4096) as service:
        slow = socket.create_connection(("127.0.0.1", service.port), timeout=10)
        if kind == "head":
            slow.sendall(b"POST /segment HTTP/1.1\r\nHost: 127")
            assert slow.recv(100) == b""
        elif kind == "body":
            slow.sendall(b"POST /segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nabc")
            answer = b"".join(iter(lambda: slow.recv(4000), b""))
            assert b" 408 " in answer and b'{"error":"expected more than 3 bytes within 0.3 s' in answer
        else:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
            body = cv2.imencode(".bmp", noise)[1].tobytes()
            head = f"POST /segment?format=overlay HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            slow.sendall(head.encode() + body)
            until(lambda: service.log, 20)
            time.sleep(1.3)
            answer = b"".join(iter(lambda: slow.recv(1 << 20), b""))
            assert b" 200 " in answer[:20] and len(answer) < 500_000  # of 750,000 bytes of noise
        slow.close()
        assert service.ask("POST", "/segment", picture())[0] == 200


def test_nothing_but_http_is_answered_in_the_same_form():
    import socket

    with served(Bright()) as service, socket.create_connection(("127.0.0.1", service.port), timeout=10) as other:
        other.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b'{"error": "expected a request of HTTP/1.1' in other.recv(4000)


def test_work_goes_on_in_threads_of_its_own():
    """The event loop answers while the network works."""
    with served(Bright()) as service:
        service.engine.hold.clear()
        thread = threading.Thread(target=service.ask, args=("POST", "/segment", picture()))
        thread.start()
        until(lambda: service.engine.batches)
        assert service.ask("GET", "/v2/health/live")[0] == 200
        service.engine.hold.set()
        thread.join()

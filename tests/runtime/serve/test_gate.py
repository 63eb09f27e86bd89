"""Who may come in, what is logged and counted, and headers that keep a page's data where it is."""

import base64
import json
import socket

import pytest
from websockets.sync.client import connect

from tests.runtime.serve.conftest import Bright, picture, served, until

TOKEN = "long and sécret"


@pytest.fixture(scope="module")
def closed():
    with served(Bright(), token=TOKEN, origins=("https://pages.example",)) as found:
        yield found


def basic(password):
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


def test_health_is_open_and_all_else_needs_the_token(closed):
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert closed.ask("GET", path)[0] == 200
    for path in ("/", "/metrics", "/docs", "/openapi.json", "/page/page.js", "/v2", "/engine", "/nothing"):
        status, headers, body = closed.ask("GET", path)
        assert status == 401 and headers["www-authenticate"].startswith("Basic") and b"Authorization: expected" in body
    for wrong in ("Bearer x", "Bearer", "Basic !", basic("x"), "Digest a", "Bearer " + TOKEN.encode().hex()):
        assert closed.ask("GET", "/metrics", Authorization=wrong)[0] == 401
    for right in ("Bearer " + TOKEN, "bearer " + TOKEN, basic(TOKEN)):
        assert closed.ask("GET", "/metrics", Authorization=right.encode())[0] == 200
    assert TOKEN not in json.dumps(closed.log, ensure_ascii=False)


def test_other_sites_are_kept_out_unless_they_are_named(service, closed):
    assert service.ask("POST", "/segment", picture(), Origin="https://evil.example")[0] == 403
    assert service.ask("POST", "/segment", picture(), Origin="null")[0] == 403
    status, headers, _ = service.ask("POST", "/segment", picture(), Origin=service.address)
    assert status == 200 and "access-control-allow-origin" not in headers
    named = {"Origin": "https://pages.example", "Authorization": ("Bearer " + TOKEN).encode()}
    status, headers, _ = closed.ask("POST", "/segment", picture(), **named)
    assert status == 200 and headers["access-control-allow-origin"] == "https://pages.example"
    assert closed.ask("GET", "/v2/health/live", Host="pages.example")[0] == 200
    asked = {"Origin": "https://pages.example", "Access-Control-Request-Method": "POST"}
    status, headers, _ = closed.ask("OPTIONS", "/segment", **asked)
    assert status == 204 and "authorization" in headers["access-control-allow-headers"]


def test_a_name_that_leads_here_is_not_ours(service):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "a:b:c"):
        assert service.ask("GET", "/v2", Host=host)[0] in (400, 421), host
    assert service.ask("GET", "/v2", Host="localhost:80")[0] == 200


def test_a_request_has_one_length(service):
    """What a proxy would take for the body's end is not taken for another request."""
    head = (
        b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port), 10) as client:
        client.sendall(head + b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        found = b"".join(iter(lambda: client.recv(4096), b""))
    assert found.startswith(b"HTTP/1.1 400") and found.count(b"HTTP/1.1") == 1
    assert b"expected Content-Length or Transfer-Encoding, found both" in found


def test_a_socket_that_is_refused_has_a_status(service):
    with pytest.raises(Exception, match="403"):
        connect(f"ws://127.0.0.1:{service.port}/nothing")
    until(lambda: [line for line in service.log if (line["path"], line["status"]) == ("/nothing", 403)])


def test_the_log_has_a_line_for_each_request(service):
    before = len(service.log)
    service.ask("GET", "/v2?x=secret")
    wanted = ("GET", "/v2", 400, "127.0.0.1")

    def found():  # lines of requests before may still come
        new = service.log[before:]
        return [line for line in new if (line["method"], line["path"], line["status"], line["client"]) == wanted]

    until(found)
    (line,) = found()
    assert set(line) == {"time", "client", "method", "path", "status", "milliseconds", "bytes"}


def test_metrics_count_requests_errors_and_stages(closed):
    may = {"Authorization": ("Bearer " + TOKEN).encode()}
    before = closed.ask("GET", "/metrics", **may)[2].decode()
    closed.ask("POST", "/segment", picture(), **may)
    closed.ask("POST", "/segment", b"x", **may)
    text = closed.ask("GET", "/metrics", **may)[2].decode()
    for name, grown in (
        ('diffseg_requests_total{route="/segment",status="200"}', 1),
        ('diffseg_requests_total{route="/segment",status="415"}', 1),
        ('diffseg_errors_total{route="/segment"}', 1),
        ('diffseg_stage_seconds_count{stage="network"}', 1),
        ('diffseg_stage_seconds_count{stage="queue"}', 1),
        ('diffseg_request_seconds_count{route="/segment"}', 2),
    ):
        values = [
            next((float(line.split()[-1]) for line in page.splitlines() if line.startswith(name)), 0)
            for page in (before, text)
        ]
        assert values[1] - values[0] == grown, name
    assert "diffseg_queue_limit 64.0" in text


def test_pages_ask_nobody_else(service):
    for path in ("/", "/docs", "/page/page.js", "/page/style.css", "/page/docs.js", "/page/icon.svg"):
        status, headers, body = service.ask("GET", path)
        assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "//cdn" not in text, path
    assert service.ask("GET", "/page/../app.py")[0] == 404
    assert service.ask("GET", "/page/%2e%2e/app.py")[0] == 404
    assert set(service.json("GET", "/openapi.json")[1]["paths"]) >= {"/segment", "/v2/models/{model}/infer"}

"""The server under the application: slow clients are left, SIGTERM lets it finish, and errors have one form."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from runtime.serve.settings import Settings

KEPT_ALIVE = 30  # seconds that a connection may be idle between two requests
BACKLOG = 512
MOST_HEAD = 32 << 10  # bytes


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises DiffSegError where the address is taken, or does not belong to this machine."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
    except socket.gaierror as error:
        raise DiffSegError(f"--host {host}: expected an address of this machine, found {error.strerror}") from None
    except OSError as error:
        raise DiffSegError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); choose another port, or 0 "
            "for a free one"
        ) from None
    return listening


class Server(uvicorn.Server):
    """Ctrl-C and SIGTERM stop it: it accepts no more, finishes what it has, and returns. A second one ends that."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals until the server ends. uvicorn's own raises them again, and the process would not exit 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        self.force_exit: bool = bool(self.should_exit)
        self.should_exit: bool = True


def server(app: Any, settings: Settings) -> Server:
    """A server for the application, not yet started; `run(sockets=[...])` starts it."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # the client is told what is wrong with a form
    config = uvicorn.Config(
        app,
        http=_protocol(settings.slowest),
        access_log=False,
        log_config=None,
        log_level="critical",
        server_header=False,
        timeout_keep_alive=KEPT_ALIVE,
        timeout_graceful_shutdown=int(settings.seconds + 2 * settings.slowest),
        h11_max_incomplete_event_size=MOST_HEAD,
        ws_max_size=settings.most_bytes,
        ws_max_queue=1,
        ws_per_message_deflate=False,  # a few bytes could become many
        proxy_headers=False,
    )
    return Server(config)


def _protocol(slowest: float) -> type[H11Protocol]:
    """uvicorn's protocol, with limits for what the application never sees."""

    class Protocol(H11Protocol):
        """A head of a request must be there within some seconds, and so must the reader of an answer."""

        _head: asyncio.TimerHandle | None = None
        _reader: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            if self._head is None and (self.cycle is None or self.cycle.response_complete):
                self._await_head()
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._done_with_head()

        def handle_websocket_upgrade(self, event: Any) -> None:
            self._done_with_head()
            super().handle_websocket_upgrade(event)

        def connection_lost(self, exc: Exception | None) -> None:
            self._done_with_head()
            _stop(self._reader)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            _stop(self._reader)
            self._reader = self.loop.call_later(slowest, self.transport.abort)

        def resume_writing(self) -> None:
            _stop(self._reader)
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
                self.transport.close()
                return
            body = json.dumps(
                {"error": f"expected a request of HTTP/1.1 with a head of at most {MOST_HEAD} bytes, found another"}
            ).encode()
            head = (
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
                b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n"
            )
            self.transport.write(head + body)
            self.transport.close()

        def _done_with_head(self) -> None:
            _stop(self._head)
            self._head = None

        def _await_head(self) -> None:
            self._head = self.loop.call_later(slowest, self.transport.close)

    return Protocol


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

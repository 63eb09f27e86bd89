"""What every request passes: who may come in, the log, the counts, and headers that all answers have."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi.datastructures import Headers

from runtime.serve.settings import LOOPBACK, Refused

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from runtime.serve.metrics import Metrics
    from runtime.serve.settings import Settings

OPEN = "/v2/health/"  # for whoever looks after the process
# The page asks nobody else for anything, and no other page may frame it.
SAFE = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Gate:
    """Wraps the application."""

    def __init__(self, app: Any, settings: Settings, metrics: Metrics, log: Any) -> None:
        """`log`: a file for a line of JSON for each request, or None."""
        self.app = app
        self._settings, self._metrics, self._log = settings, metrics, log
        self._loopback = settings.host in LOOPBACK
        self._names = (*LOOPBACK, *(urlsplit(origin).hostname for origin in settings.origins))

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """An ASGI application."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        start, answer = time.perf_counter(), {"status": 0, "bytes": 0}
        headers = Headers(scope=scope)
        more = self._of_origin(headers)

        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer["status"] = message["status"]
                own = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in (SAFE | more).items() if n.encode() not in own),
                ]
            elif message["type"] == "http.response.body":
                answer["bytes"] += len(message.get("body", b""))
            elif message["type"] == "websocket.accept":
                answer["status"] = 101
            elif message["type"] == "websocket.close" and not answer["status"]:
                answer["status"] = 403  # which the server answers where a socket is closed before it is open
            await send(message)

        try:
            refused = self._refuse(scope, headers)
            if refused is not None:
                await _answer(scope, receive, sent, refused)
            elif scope["type"] == "http" and scope["method"] == "OPTIONS" and more:
                await _answer(scope, receive, sent, None)
            else:
                await self.app(scope, receive, sent)
        except Exception:
            if not answer["status"]:  # what an answer was begun for is answered: the rest has a line of its own
                raise
        finally:
            self._note(scope, answer, time.perf_counter() - start)

    def _refuse(self, scope: MutableMapping[str, Any], headers: Headers) -> Refused | None:
        """Why a request may not come in; None where it may."""
        host, name = headers.get("host", ""), ""
        with suppress(ValueError):
            name = urlsplit(f"//{host}").hostname or ""
        # A page of another site may have a name that leads to this machine.
        if self._loopback and name not in self._names:
            return Refused(421, f"Host: expected one of {', '.join(LOOPBACK)}, found {name[:80]!r}")
        # A proxy that believes the other of the two would take the end of this request for the beginning of another.
        if "content-length" in headers and "transfer-encoding" in headers:
            return Refused(400, "expected Content-Length or Transfer-Encoding, found both")
        origin = headers.get("origin")
        if origin is not None and origin not in self._settings.origins and origin.partition("://")[2] != host:
            return Refused(403, f"Origin: pages of {origin[:80]!r} may not use this service; --origin allows it")
        token = self._settings.token
        if not token or scope["path"].startswith(OPEN) or (scope["type"] == "http" and scope["method"] == "OPTIONS"):
            return None
        if hmac.compare_digest(_token(headers.get("authorization", "")), token.encode()):
            return None
        return Refused(
            401,
            "Authorization: expected 'Bearer TOKEN', or the token as a password",
            WWW_Authenticate='Basic realm="diffseg", charset="UTF-8"',
        )

    def _of_origin(self, headers: Headers) -> dict[str, str]:
        """Headers that let a page of another site read answers."""
        origin = headers.get("origin")
        if origin is None or origin not in self._settings.origins:
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-allow-headers": "authorization, content-type, inference-header-content-length",
            "access-control-allow-methods": "GET, POST, DELETE",
            "access-control-expose-headers": "x-segments, inference-header-content-length, retry-after",
            "vary": "Origin",
        }

    def _note(self, scope: MutableMapping[str, Any], answer: dict[str, int], seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.request(route, answer["status"], seconds)
        if self._log is None:
            return
        client = scope.get("client") or ("", 0)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "client": client[0],
            "method": scope.get("method", "WEBSOCKET"),
            "path": scope["path"][:200],
            "status": answer["status"],
            "milliseconds": round(seconds * 1e3, 1),
            "bytes": answer["bytes"],
        }
        try:
            print(json.dumps(line), file=self._log, flush=True)
        except (OSError, ValueError):  # nobody reads the log any more
            self._log = None


def _token(authorization: str) -> bytes:
    """The token of `Bearer TOKEN`, or the password of `Basic …`, which is what a browser asks its user for."""
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        return value.strip().encode("latin-1")  # the bytes as they came
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


async def _answer(scope: MutableMapping[str, Any], receive: Any, send: Any, refused: Refused | None) -> None:
    from fastapi.responses import JSONResponse, Response

    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": str(refused)[:120]})
    elif refused is None:
        await Response(status_code=204)(scope, receive, send)
    else:
        closing = refused.headers | {"Connection": "close"}  # the body is not read
        await JSONResponse({"error": str(refused)}, refused.status, closing)(scope, receive, send)

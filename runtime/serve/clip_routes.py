"""The WebSocket for clips."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from runtime.errors import DiffSegError
from runtime.serve.asked import check_parameters, options_of
from runtime.serve.clips import Clip
from runtime.serve.forms import choose
from runtime.serve.settings import Refused

if TYPE_CHECKING:
    from runtime.serve.desk import Desk

TRY_AGAIN, UNEXPECTED, BROKEN, POLICY, LEAVING = 1013, 1003, 1011, 1008, 1001  # RFC 6455, and 1013 of its registry


def router(desk: Desk) -> APIRouter:
    """The routes. Clips share the workers' engines, and take turns."""
    routes = APIRouter()
    open_now: set[Clip] = set()

    @routes.websocket("/clip")
    async def clip(
        socket: WebSocket,
        format: str | None = None,
        threshold: str | None = None,
        refine: str | None = None,
        min_area: str | None = None,
        every: str = "1",
        skip_similar: str = "0",
        warm_start: str = "0",
    ) -> None:
        await socket.accept()
        try:
            check_parameters(socket)
            if len(open_now) >= desk.settings.clips:
                raise Refused(503, f"{len(open_now)} clips are open, which is the limit; try again later")
            options = options_of({"threshold": threshold, "refine": refine, "min_area": min_area})
            segmenter = desk.aside[len(open_now) % len(desk.aside)]
            form = choose(format or "labels", "")
            chosen = Clip(
                desk.options(options, segmenter).clone(),
                form,
                every=_whole("every", every),
                skip_similar=_flag("skip_similar", skip_similar),
                warm_start=_flag("warm_start", warm_start),
            )
        except (DiffSegError, ModuleNotFoundError) as error:
            full = isinstance(error, Refused) and error.status == 503
            await _close(socket, TRY_AGAIN if full else POLICY, str(error))
            return
        open_now.add(chosen)
        desk.metrics.clips.set(len(open_now))
        try:
            await _serve(desk, socket, chosen, form.name != "regions")
        except (WebSocketDisconnect, asyncio.TimeoutError):
            pass
        finally:
            open_now.discard(chosen)
            desk.metrics.clips.set(len(open_now))

    return routes


async def _serve(desk: Desk, socket: WebSocket, clip: Clip, binary: bool) -> None:
    """Answer frame after frame, in order. What cannot be decoded is an error of its own."""
    while True:
        try:
            message = await asyncio.wait_for(socket.receive(), desk.settings.idle)
        except asyncio.TimeoutError:
            return await _close(socket, LEAVING, f"no frame within {desk.settings.idle:g} s")
        if message["type"] == "websocket.disconnect":
            return
        data = message.get("bytes")
        if data is None:
            return await _close(socket, UNEXPECTED, "expected encoded pictures as binary messages, found text")
        try:
            line, answer = await desk.aside_of(lambda data=data: clip.segment(data))  # type: ignore[misc]
        except Refused as error:
            await socket.send_text(json.dumps({"error": str(error), "status": error.status}))
            if error.status >= 500 and error.status != 503:  # the clip is broken
                return await _close(socket, BROKEN, str(error))
            continue
        # Whoever does not read is left: the clip's place is for others.
        await asyncio.wait_for(socket.send_text(json.dumps(line, separators=(",", ":"))), desk.settings.slowest)
        if binary:
            await asyncio.wait_for(socket.send_bytes(answer), desk.settings.slowest)


async def _close(socket: WebSocket, code: int, text: str) -> None:
    """Say why in a message, since a reason may have only 123 bytes, and close."""
    text = " ".join(text.split())
    await socket.send_text(json.dumps({"error": text}))
    await socket.close(code, text.encode()[:120].decode(errors="ignore"))


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:9]) >= 1 and len(text) < 9):
        raise Refused(400, f"{name}: expected a whole number from 1, found {text[:80]!r}")
    return int(text)


def _flag(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise Refused(400, f"{name}: expected 0 or 1, found {text[:80]!r}")
    return text == "1"

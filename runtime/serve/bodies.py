"""Bodies of requests: read within limits of size, memory and time, and told apart by their types."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError
from runtime.frames.formats import HEAD, encoded_picture, is_cut_short, pixels_of
from runtime.frames.limits import check_pixels
from runtime.frames.source import known_formats
from runtime.serve.settings import GONE, Refused

if TYPE_CHECKING:
    from fastapi import Request

    from runtime.serve.settings import Settings

LEAST_RATE = 64 << 10  # bytes a second that a body must have on average, after its first seconds
AT_ONCE = 4  # times the most bytes of one body: of all bodies together
UNREAD = 64 << 20  # bytes behind a limit that are read and dropped, so that the client reads the answer
MOST_FIELD = 1 << 10  # bytes of a field of a form
FIELDS = ("threshold", "refine", "min_area", "pieces", "format")


class Bodies:
    """All bodies of a service: together they have at most AT_ONCE times as many bytes as one may have."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, which counts as held until the end of the block.

        Raises Refused: 400 where it is empty, 408 where it takes too long, 413 where it is too large, 415 where it is
        compressed, and 503 where others hold too many bytes.
        """
        parts: list[bytes] = []
        most = self._settings.most_bytes
        try:
            if request.headers.get("content-encoding", "identity").lower() != "identity":
                raise Refused(415, "Content-Encoding: expected a body that is not compressed; send it as it is")
            length = request.headers.get("content-length", "0")
            if length.isdecimal() and int(length) > most:
                await self._drop(request)
                raise self._too_large(f"{int(length)} bytes")
            await self._gather(request, parts)
            data = b"".join(parts)
            if not data:
                raise Refused(400, "expected a body, found none; send the picture's bytes, or a form with a file")
            yield data
        finally:
            self._held -= sum(map(len, parts))
            parts.clear()

    async def _gather(self, request: Request, parts: list[bytes]) -> None:
        size, more, start = 0, True, time.monotonic()
        while more:
            allowed = self._settings.slowest + size / LEAST_RATE
            try:
                message = await asyncio.wait_for(request.receive(), start + allowed - time.monotonic())
            except asyncio.TimeoutError:
                raise Refused(
                    408, f"expected more than {size} bytes within {allowed:.3g} s; send it faster", Connection="close"
                ) from None
            if message["type"] != "http.request":
                raise Refused(GONE, "the client went away before the end of its body")
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size > self._settings.most_bytes:
                await self._drop(request)
                raise self._too_large("more")
            if self._held + len(part) > AT_ONCE * self._settings.most_bytes:
                raise Refused(
                    503, "the service holds too many bytes of others; try again", Retry_After="2", Connection="close"
                )
            self._held += len(part)
            parts.append(part)

    async def _drop(self, request: Request) -> None:
        """Read some of what is left: an answer to a client that is still sending would be lost."""

        async def read() -> None:
            dropped = 0
            while dropped < UNREAD:
                message = await request.receive()
                dropped += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return

        try:
            await asyncio.wait_for(read(), self._settings.slowest)
        except asyncio.TimeoutError:
            return

    def _too_large(self, found: str) -> Refused:
        most = self._settings.most_bytes
        return Refused(
            413, f"expected a body of at most {most} bytes, found {found}; send a smaller one", Connection="close"
        )


async def picture_in(request: Request, body: bytes) -> tuple[bytes, dict[str, str]]:
    """The encoded picture in a body, and the fields of the form that it is in, if it is a form.

    Raises Refused: 400, 413 or 415 where there is no picture that can be decoded within the limits.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    fields: dict[str, str] = {}
    if kind == "multipart/form-data":
        body, fields = await _form(request, body)
    elif not (kind in ("", "application/octet-stream") or kind.startswith("image/")):
        raise Refused(
            415,
            f"Content-Type: expected image/…, application/octet-stream or multipart/form-data, found {kind[:80]!r}",
        )
    check_picture(body)
    return body, fields


def check_picture(data: bytes) -> None:
    """Raise Refused where data is no whole picture, or one of too many pixels, as far as its first bytes tell."""
    if not encoded_picture(data[:HEAD]):
        raise Refused(415, f"the body is not an image; expected one of {known_formats()}")
    try:
        check_pixels(pixels_of(data), "the picture")
    except DiffSegError as error:
        raise Refused(413, str(error)) from None
    if is_cut_short(data):
        raise Refused(400, f"the picture is cut short ({len(data)} bytes); send all of it")


async def _form(request: Request, body: bytes) -> tuple[bytes, dict[str, str]]:
    """The file and the fields of a form. Raises Refused, 400, where it is another form."""

    async def again() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        limits: Any = {"max_files": 1, "max_fields": len(FIELDS), "max_part_size": MOST_FIELD}
        form = await type(request)(request.scope, again).form(**limits)
    except Exception as error:  # several kinds, of the parser and of what is above it
        text = " ".join(str(getattr(error, "detail", error)).split())[:200]
        raise Refused(400, f"expected a form with one file and at most {', '.join(FIELDS)}; {text}") from None
    data, fields = None, {}
    for name, value in form.multi_items():
        if not isinstance(value, str):
            data = await value.read()
            await value.close()
        elif name not in FIELDS:
            raise Refused(400, f"expected the fields {', '.join(FIELDS)} beside the file, found {name[:80]!r}")
        elif name in fields:
            raise Refused(400, f"{name}: expected one value, found several in the form")
        else:
            fields[name] = value
    if not data:
        raise Refused(400, "expected a form with a file, found none, or an empty one")
    return data, fields

"""What a request asks for: its parameters, and the end of whoever asked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi.requests import HTTPConnection, Request

from runtime.errors import DiffSegError
from runtime.frames.source import Source
from runtime.frames.still import Still
from runtime.options import thresholds_of
from runtime.serve.desk import Options
from runtime.serve.settings import Refused
from runtime.stream.frame import Job, Place

if TYPE_CHECKING:
    from runtime.serve.forms import Form

NAME = "the picture"  # what messages call it


def options_of(fields: Mapping[str, Any]) -> Options:
    """`threshold`, `refine`, `min_area`, `pieces` of a query or a form. Raises Refused, 400, where one is invalid."""
    area = fields.get("min_area")
    least = None if area is None else number(area, "min_area", "a share of the picture, or pixels from 1")
    try:
        thresholds = thresholds_of(fields.get("threshold"))
    except DiffSegError as error:
        raise Refused(400, str(error)) from None
    return Options(thresholds, fields.get("refine"), least, fields.get("pieces"))


def number(text: Any, name: str, expected: str) -> float:
    """`0.9` → 0.9. Raises Refused, 400."""
    try:
        return float(text)
    except ValueError:
        raise Refused(400, f"{name}: expected {expected}, found {str(text)[:80]!r}") from None


def check_parameters(request: HTTPConnection) -> None:
    """Raise Refused, 400, where a query has a parameter that its route does not take, or one twice."""
    route = request.scope.get("route")
    known = (
        [
            name
            for name, parameter in inspect.signature(route.endpoint).parameters.items()
            if parameter.default is not inspect.Parameter.empty
        ]
        if route is not None
        else []
    )
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            takes = f"one of {', '.join(known)}" if known else "none"
            raise Refused(400, f"parameters: expected {takes}, found {name[:80]!r}")
        if given.count(name) > 1:
            raise Refused(400, f"{name}: expected one value, found {given.count(name)}")


async def gone(request: Request) -> None:
    """Ends when the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def job_of(form: Form, *, data: bytes | None = None, frame: Any = None) -> Job:
    """A job that makes a form of answer from an encoded picture, or from a frame."""
    places = [Place(form.name, form.sink())]
    if frame is not None:
        return Job(Source(Path(NAME), Path()), frame=frame, places=places)
    source = Source(Path(NAME), Path(), data=data)
    return Job(source, Still(source), places=places)

"""The application: routes, errors in the service's own form, and what begins and ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError, StarletteHTTPException
from fastapi.requests import HTTPConnection
from fastapi.responses import JSONResponse, Response

from runtime import __version__
from runtime.errors import DiffSegError, as_one_line
from runtime.serve import clip_routes, page_routes, tensor_routes
from runtime.serve.asked import check_parameters, gone, job_of, options_of
from runtime.serve.bodies import Bodies, picture_in
from runtime.serve.desk import Desk
from runtime.serve.forms import FORMS, choose
from runtime.serve.gate import Gate
from runtime.serve.metrics import Metrics
from runtime.serve.settings import Refused, Settings

if TYPE_CHECKING:
    from runtime.segmenter import Segmenter

ABOUT = """Segments of any picture, without labels, prompt or training. An error is `{"error": "one line"}`.

Clips: a WebSocket at `/clip` takes encoded pictures, and answers each with a line of JSON and, unless `format=regions`,
the form asked for; labels are identities that stay with their objects."""
PICTURE = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
            },
        },
    }
}
FORM = Query(None, description="; ".join(f"{form.name}: {form.help}" for form in FORMS))
THRESHOLD = Query(None, description="KL threshold, one for each iteration with commas, or auto. Higher merges more.")
REFINE = Query(None, description="As of the command line: snap, pamr, kmeans, or none.")
PIECES = Query(
    None,
    description="Which pieces that do not touch are segments: unlike (those unlike others), split (all), keep (none).",
)
MIN_AREA = Query(None, description="Smaller regions go to their neighbours: a share of the picture, or pixels from 1.")


def create_app(segmenters: Sequence[Segmenter], settings: Settings, *, log: Any = None) -> Any:
    """The service as an ASGI application.

    Args:
        segmenters: one for each device, of one engine. They belong to the service from now on.
        settings: limits, and who may use it.
        log: where a line of JSON for each request is written; None: nowhere.
    """
    metrics = Metrics(settings.queue)
    desk = Desk(segmenters, settings, metrics)
    bodies = Bodies(settings)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.get_running_loop().run_in_executor(None, desk.close)

    app = FastAPI(
        title="DiffSeg",
        version=__version__,
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        dependencies=[Depends(_of_http)],
    )
    app.state.desk = desk
    for router in (
        _segment_routes(desk, bodies),
        tensor_routes.router(desk, bodies),
        clip_routes.router(desk),
        page_routes.router(desk, bodies),
    ):
        app.include_router(router)
    app.mount("/page", page_routes.page_files())
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(DiffSegError, _refused)
    app.add_exception_handler(StarletteHTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _broken)
    return Gate(app, settings, metrics, log)


def _segment_routes(desk: Desk, bodies: Bodies) -> APIRouter:
    router = APIRouter(tags=["segment"])

    @router.post("/segment", openapi_extra=PICTURE, summary="Segment a picture", response_class=Response)
    async def segment(
        request: Request,
        format: str | None = FORM,
        threshold: str | None = THRESHOLD,
        refine: str | None = REFINE,
        min_area: str | None = MIN_AREA,
        pieces: str | None = PIECES,
    ) -> Response:
        given = {"format": format, "threshold": threshold, "refine": refine, "min_area": min_area, "pieces": pieces}
        async with bodies.read(request) as body:
            data, fields = await picture_in(request, body)
            for name in fields:
                if given[name] is not None:
                    raise Refused(400, f"{name}: expected one value, found one in the query and one in the form")
            given |= fields
            form = choose(given["format"], request.headers.get("accept", ""))
            job = job_of(form, data=data)
            await desk.segment([job], options_of(given), partial(gone, request))
        assert job.result is not None
        count = {"X-Segments": str(job.result.count), "Vary": "Accept"}
        return Response(job.prepared[0], media_type=form.media, headers=count)

    @router.get("/metrics", summary="For Prometheus", response_class=Response)
    async def metrics() -> Response:
        text, media = desk.metrics.text()
        return Response(text, headers={"Content-Type": media})

    return router


async def _of_http(connection: HTTPConnection) -> None:
    if connection.scope["type"] == "http":  # a WebSocket says what is wrong once it is open
        check_parameters(connection)


async def _refused(request: Request, error: Any) -> Response:
    # Any other DiffSegError says what is wrong with what was sent.
    status, headers = (error.status, error.headers) if isinstance(error, Refused) else (400, None)
    # JSON may name half of a character, which no answer in UTF-8 can repeat.
    text = " ".join(str(error).split()).encode("utf-8", "replace").decode()
    return JSONResponse({"error": text}, status, headers)


async def _http(request: Request, error: Any) -> Response:
    texts = {404: "no such path {path}; /docs lists them", 405: "{method} is not for {path}"}
    text = texts.get(error.status_code, str(error.detail)).format(method=request.method, path=request.url.path[:200])
    return JSONResponse({"error": text}, error.status_code, error.headers)


async def _invalid(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"error": f"{where}: {first['msg']}, found {repr(first.get('input'))[:80]}"}, 400)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(as_one_line(error, "this request"))}, 500)

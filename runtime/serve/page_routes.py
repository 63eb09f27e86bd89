"""The page, the documentation, and the pictures whose attention is kept for the page."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from runtime import __version__
from runtime.frames.decode import decode_frame
from runtime.page.shared import FILES
from runtime.serve.asked import NAME, gone, job_of, number, options_of
from runtime.serve.bodies import picture_in
from runtime.serve.desk import Options
from runtime.serve.forms import FORMS, choose
from runtime.serve.pictures import VIEW_FORM, Picture, Pictures, describe, keep

if TYPE_CHECKING:
    from runtime.serve.bodies import Bodies
    from runtime.serve.desk import Desk

VIEW = f"view (the colours alone, at most 1024 pixels wide and high), {', '.join(form.name for form in FORMS)}"


def page_files() -> Any:
    """The page's own files as an ASGI application, for /page."""
    return StaticFiles(directory=FILES)


def router(desk: Desk, bodies: Bodies) -> APIRouter:
    """The routes. Kept pictures are segmented beside the stream, since the network need not run again."""
    routes = APIRouter(tags=["pictures"])
    pictures = Pictures(desk.settings.most_kept, desk.settings.idle, desk.metrics)
    segmenter, network = desk.aside[0], threading.Lock()
    spec, config, auto = segmenter.engine.spec, segmenter.config, segmenter.stages.route.auto
    # Their route knows "auto"; numbers take its place where a request, or the service, has some.
    any_auto = segmenter.stages.route.has_maps and config.solver == "merge"
    kept_stages = desk.options(Options("auto"), segmenter) if any_auto else segmenter.stages

    def threshold_of(options: Options) -> Any:
        if options.thresholds == "auto" or (options.thresholds is None and auto):
            return None
        return config.thresholds if options.thresholds is None else options.thresholds

    @routes.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(FILES / "index.html")

    @routes.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(FILES / "docs.html")

    @routes.get("/engine", summary="What segments")
    async def engine() -> dict[str, Any]:
        return {
            "name": segmenter.engine.path.stem,
            "version": __version__,
            "head": spec.head,
            "size": [spec.height, spec.width],
            "threshold": "auto" if auto else list(config.thresholds),
            "thresholds": list(config.thresholds),
            "auto": any_auto,
            "attention": segmenter.stages.route.has_maps,
            "most_bytes": desk.settings.most_bytes,
        }

    @routes.post("/pictures", summary="Keep a picture and its attention", status_code=201)
    async def add(request: Request) -> JSONResponse:
        start = time.perf_counter()
        async with bodies.read(request) as body:
            data, _ = await picture_in(request, body)

            def work() -> Picture:
                frame = decode_frame(data, NAME)
                with network:
                    return keep(kept_stages, frame)

            picture = await desk.aside_of(work, partial(gone, request))
        spent = round((time.perf_counter() - start) * 1e3, 1)
        found = {"picture": pictures.add(picture), "size": list(picture.frame.shape[:2]), "milliseconds": spent}
        return JSONResponse(found | {"view": list(picture.view.shape[:2])}, 201)

    @routes.get("/pictures/{picture}", summary="Segment a kept picture", response_class=Response)
    async def segment(
        request: Request,
        format: str = Query("view", description=VIEW),
        threshold: str | None = None,
        refine: str | None = None,
        min_area: str | None = None,
        pieces: str | None = None,
    ) -> Response:
        picture = pictures.get(request.path_params["picture"])
        given = {"threshold": threshold, "refine": refine, "min_area": min_area, "pieces": pieces}
        options = options_of(given)
        form = VIEW_FORM if format == VIEW_FORM.name else choose(format, "")
        frame = picture.view if form is VIEW_FORM else picture.frame
        if picture.attended is None:
            job = job_of(form, frame=frame)
            await desk.segment([job], options, partial(gone, request))
            assert job.result is not None
            answer, count = job.prepared[0], job.result.count
        else:
            stages = desk.options(options, segmenter)
            attended = picture.shown if form is VIEW_FORM else picture.attended
            chosen = threshold_of(options)
            if options._replace(thresholds=None) != Options():
                attended, chosen = attended.seen(refinement=stages.refinement, route=stages.route), None

            def work() -> tuple[bytes, int]:
                with picture.lock:
                    result = attended.result(chosen)
                return form.sink().prepare(frame, result.labels), result.count

            answer, count = await desk.aside_of(work, partial(gone, request))
        return Response(answer, media_type=form.media, headers={"X-Segments": str(count)})

    @routes.get("/pictures/{picture}/at", summary="The segment and the attention of a pixel")
    async def at(request: Request, x: str = "0", y: str = "0", threshold: str | None = None) -> JSONResponse:
        picture = pictures.get(request.path_params["picture"])
        options = options_of({"threshold": threshold})
        segmenter.stages.route.check_maps("a click")
        desk.options(options, segmenter)
        (height, width), view = picture.frame.shape[:2], picture.view.shape[:2]
        across, down = (number(text, name, "a number of pixels") for name, text in (("x", x), ("y", y)))

        def work() -> dict[str, Any]:
            with picture.lock:
                column, row = across * view[1] / width, down * view[0] / height
                return describe(picture.shown, column, row, threshold_of(options), (height, width))

        return JSONResponse(await desk.aside_of(work, partial(gone, request)))

    @routes.delete("/pictures/{picture}", summary="Forget a kept picture", status_code=204, response_class=Response)
    async def forget(request: Request) -> Response:
        pictures.forget(request.path_params["picture"])
        return Response(status_code=204)

    return routes

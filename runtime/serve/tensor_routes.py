"""The routes of the Open Inference Protocol, below /v2."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from runtime import __version__
from runtime.options import label_type
from runtime.serve import tensors
from runtime.serve.asked import gone
from runtime.serve.desk import Options
from runtime.serve.settings import Refused
from runtime.stream.frame import Job

if TYPE_CHECKING:
    from runtime.serve.bodies import Bodies
    from runtime.serve.desk import Desk


def router(desk: Desk, bodies: Bodies) -> APIRouter:
    """The routes. The model is the engine, by the name of its file without its suffix."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    engine = desk.segmenter.engine
    spec, name = engine.spec, engine.path.stem
    platform = f"diffseg_{engine.backend}"
    labels = label_type(desk.segmenter.config, desk.segmenter.stages.refinement)

    def check(model: str, version: str | None = None) -> None:
        if model != name:
            raise Refused(404, f"expected the model {name!r}, found {model[:80]!r}")
        if version not in (None, tensors.VERSION):
            raise Refused(404, f"{name}: expected the version {tensors.VERSION}, found {str(version)[:80]!r}")

    @routes.get("", summary="The service")
    async def server() -> dict[str, Any]:
        return {"name": "diffseg", "version": __version__, "extensions": ["binary_tensor_data"]}

    @routes.get("/health/live", summary="Whether the process answers")
    async def live() -> dict[str, Any]:
        return {"live": True}

    @routes.get("/health/ready", summary="Whether it takes requests")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": desk.ready}, 200 if desk.ready else 503)

    @routes.get("/models/{model}", summary="Inputs and outputs")
    @routes.get("/models/{model}/versions/{version}", include_in_schema=False)
    async def metadata(request: Request) -> dict[str, Any]:
        check(**request.path_params)
        return tensors.metadata(name, spec, platform, labels)

    @routes.get("/models/{model}/ready", summary="Whether the model takes requests")
    @routes.get("/models/{model}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(request: Request) -> JSONResponse:
        check(**request.path_params)
        return JSONResponse({"name": name, "ready": desk.ready}, 200 if desk.ready else 503)

    @routes.post("/models/{model}/infer", summary="Frames of the engine's size → labels", response_class=Response)
    @routes.post("/models/{model}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request) -> Response:
        check(**request.path_params)
        async with bodies.read(request) as body:
            length = request.headers.get(tensors.LENGTH)
            # JSON of some MB takes long; the others are answered meanwhile.
            asked = await asyncio.to_thread(tensors.read_request, body, length, spec)
            jobs = [Job(frame=frame) for frame in asked.frames]
            await desk.segment(jobs, Options(asked.thresholds), partial(gone, request))
        results = [job.result for job in jobs if job.result is not None]
        arrays = {
            "labels": (labels, np.stack([result.labels for result in results])),
            "segments": ("INT32", np.array([result.count for result in results])),
        }
        data, head = await asyncio.to_thread(tensors.answer, name, asked, arrays)
        if head is None:
            return Response(data, media_type="application/json")
        return Response(data, media_type="application/octet-stream", headers={tensors.LENGTH: str(head)})

    return routes

"""Polygons of a picture's segments: `<name>_polygons.geojson`, holes and pieces kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from runtime.files import OWN_JSON
from runtime.outputs.measure import measure
from runtime.outputs.outlines import outlines
from runtime.outputs.sinks import FileSink, FrameFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from runtime.outputs.form import ClipForm
    from runtime.outputs.sinks import Sink
    from runtime.outputs.target import Target
    from runtime.words import Names


def picture(target: Target) -> Sink:
    """`<stem>_polygons.geojson`."""
    return FileSink(target.path("_polygons.geojson"), _encoded)


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_polygons/000000.geojson` and so on."""
    return FrameFolder(target.path("_polygons"), ".geojson", _encoded)


def geojson(labels: NDArray[np.int32]) -> dict[str, Any]:
    """A FeatureCollection with a Polygon or MultiPolygon for every segment of labels int [H, W].

    Coordinates are x, y in pixels, y downwards; (0, 0) is the upper left corner of the first pixel. Everything else is
    as RFC 7946 has it: rings are closed, the outer one is first.
    """
    found = outlines(labels)
    measures = measure(labels)
    features = []
    for label, area, box in zip(
        measures.labels.tolist(), measures.areas.tolist(), measures.boxes.tolist(), strict=True
    ):
        pieces = [[[*ring.tolist(), ring[0].tolist()] for ring in rings] for rings in found[label]]
        shape = {"type": "Polygon", "coordinates": pieces[0]}
        if len(pieces) > 1:
            shape = {"type": "MultiPolygon", "coordinates": pieces}
        properties = {"index": label, "area": area, "box": box}
        features.append({"type": "Feature", "id": label, "properties": properties, "geometry": shape})
    height, width = labels.shape
    return {"type": "FeatureCollection", "size": [height, width], "features": features}


def _encoded(
    frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None, names: Names | None
) -> bytes:
    return json.dumps(OWN_JSON | geojson(labels), separators=(",", ":")).encode()

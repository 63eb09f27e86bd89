"""What a request may be answered with: a table from a form's name to its media type and its bytes."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.outputs.registry import picture_sinks
from runtime.outputs.sinks import Sink
from runtime.outputs.target import Target
from runtime.serve.settings import Refused

if TYPE_CHECKING:
    from fractions import Fraction

    import numpy as np
    from numpy.typing import NDArray

    from runtime.outputs.sinks import Encode
    from runtime.words import Names

PNG, JSON = "image/png", "application/json"
NAME = "picture"  # what files and lists call what was sent


@dataclass(frozen=True, slots=True)
class Form:
    """A form of an answer.

    Attributes:
        name: what `?format=` takes.
        media: its media type. The first form of a media type is what `Accept` gets.
        help: for people.
        encode: the bytes, from what `Sink.prepare` takes. None: what `--save` writes of the kind of this name.
    """

    name: str
    media: str
    help: str
    encode: Encode | None = None

    def sink(self) -> Sink:
        """An output of a job that is kept in memory."""
        return Kept(self.encode or picture_sinks([self.name], TARGET)[self.name].prepare)


class Kept(Sink):
    """Bytes that nobody writes: `Job.prepared` has them."""

    path = Path(NAME)

    def __init__(self, encode: Encode) -> None:
        self._encode = encode

    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
    ) -> bytes:
        """The answer, which has no words."""
        return self._encode(frame, labels, colours, None)

    def write(self, number: int, time: Fraction, prepared: Any) -> None:
        """Writes nothing."""

    def close(self) -> None:
        """Nothing is left to do."""


def _json(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _coco(
    frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None, names: Names | None
) -> bytes:
    from runtime.outputs.coco import dataset

    return _json(dataset(labels, NAME))


def _panoptic(
    frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None, names: Names | None
) -> bytes:
    """COCO panoptic's JSON of one picture; `png` is the picture of ids in base64."""
    from runtime.outputs.categories import categories
    from runtime.outputs.panoptic import CATEGORY, encode_ids, segments_info
    from runtime.outputs.png import encode_png

    height, width = labels.shape
    png = base64.b64encode(encode_png(encode_ids(labels)[..., ::-1], flat=True)).decode()
    annotation = {"image_id": 1, "file_name": f"{NAME}.png", "segments_info": segments_info(labels), "png": png}
    image = {"id": 1, "file_name": NAME, "height": height, "width": width}
    return _json({"images": [image], "annotations": [annotation], "categories": categories((), CATEGORY)})


def _regions(
    frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None, names: Names | None
) -> bytes:
    """Area, box and centroid of every segment, as the command line's `--json` has them."""
    from runtime.result import Result

    regions = Result(labels, 0, {}).to_json()["regions"]
    return _json({"size": list(labels.shape), "segments": len(regions), "regions": regions})


TARGET = Target(Path(NAME), Path(), NAME)
FORMS = (
    Form("labels", PNG, "one segment index per pixel"),
    Form("overlay", PNG, "the picture under its segments' colours"),
    Form("segments", PNG, "the segments' colours alone"),
    Form("coco", JSON, "COCO instances with compressed RLE", _coco),
    Form("panoptic", JSON, "COCO panoptic; the PNG of ids is in it in base64", _panoptic),
    Form("regions", JSON, "area, box and centroid of every segment", _regions),
    Form("polygons", "application/geo+json", "GeoJSON in pixels"),
    Form("yolo", "text/plain", "Ultralytics' text of polygons"),
)
NAMES = {form.name: form for form in FORMS}


def choose(asked: str | None, accept: str) -> Form:
    """The form that a request asks for: `asked` by its name, else by its header Accept.

    Raises Refused, 400 for an unknown name, 406 where nothing that is accepted can be given.
    """
    if asked is not None:
        if asked not in NAMES:
            raise Refused(400, f"format: expected one of {', '.join(NAMES)}, found {asked[:80]!r}")
        return NAMES[asked]
    wanted = sorted(map(_accepted, accept.split(",") if accept.strip() else ["*/*"]), key=lambda one: -one[1])
    for media, quality in wanted:
        for form in FORMS:
            if quality > 0 and media in (form.media, f"{form.media.partition('/')[0]}/*", "*/*"):
                return form
    known = ", ".join(dict.fromkeys(form.media for form in FORMS))
    raise Refused(406, f"Accept: expected one of {known}, found {accept[:200]!r}; or name a form by ?format=")


def _accepted(text: str) -> tuple[str, float]:
    """`image/png;q=0.8` → ("image/png", 0.8)."""
    media, *parameters = (part.strip().lower() for part in text.split(";"))
    try:
        quality = next((float(one[2:]) for one in parameters if one.startswith("q=")), 1.0)
    except ValueError:
        quality = 0.0
    return media, quality

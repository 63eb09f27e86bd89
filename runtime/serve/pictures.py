"""Pictures whose attention is kept, so that a page can turn the threshold and click without the network."""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.attended import Attended
from runtime.outputs.draw import borders, paint
from runtime.outputs.measure import measure
from runtime.outputs.outlines import outlines
from runtime.outputs.palette import Painter
from runtime.outputs.png import encode_png
from runtime.page.shared import HEAT, VIEW
from runtime.serve.forms import PNG, Form
from runtime.serve.settings import Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.serve.metrics import Metrics
    from runtime.stages import Stages
    from runtime.words import Names

MOST_MEMORY = 1 << 30  # bytes of all that is kept


@dataclass(slots=True)
class Picture:
    """A picture, and its attention where the engine has maps.

    Attributes:
        frame: uint8 [H, W, 3] BGR. `view`: the same within VIEW pixels.
        attended: its attention; None for an engine that gives labels alone. `shown`: the same for the view.
        used: when it was used last, by the monotonic clock.
        lock: held while its attention is read.
    """

    frame: NDArray[np.uint8]
    view: NDArray[np.uint8]
    attended: Attended | None = None
    shown: Any = None
    used: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def memory(self) -> int:
        """Bytes: the attention is kept as the network gives it, and aggregated."""
        maps = [] if self.attended is None else self.attended.pyramid
        return self.frame.nbytes + self.view.nbytes + 2 * sum(level.nbytes for level in maps)


class Pictures:
    """Those that were used last, by names that nobody can guess."""

    def __init__(self, most: int, idle: float, metrics: Metrics) -> None:
        self._most, self._idle, self._metrics = most, idle, metrics
        self._kept: OrderedDict[str, Picture] = OrderedDict()

    def add(self, picture: Picture) -> str:
        """Keep a picture, and forget those that were not used for longest; its name."""
        name = secrets.token_urlsafe(12)
        self._kept[name] = picture
        picture.used = time.monotonic()
        while len(self._kept) > 1 and (
            len(self._kept) > self._most or sum(kept.memory for kept in self._kept.values()) > MOST_MEMORY
        ):
            self._kept.popitem(last=False)
        self.sweep()
        return name

    def get(self, name: str) -> Picture:
        """Raises Refused, 404, where it is not kept, or no more."""
        self.sweep()
        if name not in self._kept:
            raise Refused(404, "this picture is not kept, or no more; send it again")
        self._kept.move_to_end(name)
        self._kept[name].used = time.monotonic()
        return self._kept[name]

    def forget(self, name: str) -> None:
        """Raises Refused, 404, where it is not kept."""
        self.get(name)
        del self._kept[name]
        self.sweep()

    def sweep(self) -> None:
        """Forget what was not used for long."""
        oldest = time.monotonic() - self._idle
        for name in [name for name, picture in self._kept.items() if picture.used < oldest]:
            del self._kept[name]
        self._metrics.kept.set(len(self._kept))


def keep(stages: Stages, frame: NDArray[np.uint8]) -> Picture:
    """Run the network on a frame and keep its attention, where the engine has maps."""
    scale = VIEW / max(frame.shape[:2])
    view: Any = frame
    if scale < 1:
        size = [max(1, round(side * scale)) for side in frame.shape[1::-1]]
        view = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    if not stages.route.has_maps:
        return Picture(frame, view)
    attended = Attended(stages, frame)
    return Picture(frame, view, attended, attended.seen(view))


def _draw_view(
    frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None, names: Names | None
) -> bytes:
    """The segments' colours with white borders between them, which a page lays over the picture."""
    colours = paint(labels, Painter()(labels) if colours is None else colours)
    colours[borders(labels, 1 + min(labels.shape) // 400)] = 255
    return encode_png(colours, flat=True)


VIEW_FORM = Form("view", PNG, "the colours alone, for the page", _draw_view)


def describe(attended: Attended, x: float, y: float, threshold: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The segment and the attention of a pixel of the view, at the scale of a picture of `size` (height, width).

    `area` and `box` in pixels of the picture, measured in the view. `outline`: its pieces, each a list of rings of x, y
    as shares of the width and the height. `heat`: a PNG, 0 to 255 is least to most attention, in base64.
    """
    clicked = attended.at(x, y, threshold)
    height, width = clicked.mask.shape
    only = clicked.mask.astype(np.int32)
    found = measure(only)
    at = int(np.flatnonzero(found.labels == 1)[0])
    grow = np.array([size[1] / width, size[0] / height] * 2)
    rings = [[(ring / (width, height)).round(5).tolist() for ring in piece] for piece in outlines(only)[1]]
    share = int(found.areas[at]) / only.size
    scale = min(1.0, HEAT / max(height, width))
    small: Any = clicked.attention
    if scale < 1:
        size_of_heat = [max(1, round(side * scale)) for side in (width, height)]
        small = cv2.resize(small, size_of_heat, interpolation=cv2.INTER_AREA)
    heat = np.asarray(255 * small / max(float(small.max()), 1e-12), np.uint8)
    return {
        "index": clicked.index,
        "area": round(share * size[0] * size[1]),
        "share": round(share, 5),
        "box": (found.boxes[at] * grow).round().astype(int).tolist(),
        "outline": rings,
        "heat": base64.b64encode(encode_png(heat, flat=False)).decode(),
    }

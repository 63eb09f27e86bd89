"""COCO panoptic: `<name>_panoptic.png` for every picture, and `panoptic.json` for all photographs of a folder."""

from __future__ import annotations

import json
from array import array
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from runtime.files import OWN_JSON, part_path
from runtime.outputs.categories import FIRST, categories, category_of
from runtime.outputs.failures import explain
from runtime.outputs.listing import Listing, ListSink, images_of
from runtime.outputs.measure import measure
from runtime.outputs.png import encode_png, write_encoded
from runtime.outputs.sinks import FrameFolder, refuse_foreign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from fractions import Fraction
    from pathlib import Path

    from numpy.typing import NDArray

    from runtime.outputs.form import ClipForm
    from runtime.outputs.sinks import Sink
    from runtime.outputs.target import Target
    from runtime.words import Names

CATEGORY: dict[str, object] = {"supercategory": "", "isthing": 1, "color": [220, 20, 60]}


def picture(target: Target) -> Sink:
    """`<stem>_panoptic.png`, and a line of the listing."""
    return PanopticSink(target)


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_panoptic/000000.png` and so on, and `<stem>_panoptic.json`, whose images are the frames."""
    return PanopticClip(target)


class PanopticSink(ListSink):
    """A PNG, and a line of the listing that names it."""

    def __init__(self, target: Target) -> None:
        super().__init__(LISTING, target, _entry)
        self.listing, self.path = self.path, target.path("_panoptic.png")

    @property
    def paths(self) -> tuple[Path, ...]:
        """The PNG."""
        return (self.path,)

    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
    ) -> tuple[bytes, bytes]:
        """The PNG, and the line."""
        return _png(frame, labels, colours, names), super().prepare(frame, labels, colours, names)

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Write the PNG first, so that all that is listed is there."""
        write_encoded(self.path, prepared[0])
        super().write(number, time, prepared[1])
        return self.path


class PanopticClip(FrameFolder):
    """A PNG for every frame, and one JSON file."""

    def __init__(self, target: Target) -> None:
        super().__init__(target.path("_panoptic"), ".png", _png)
        self._name = target.key
        self._json = target.path("_panoptic.json")
        self._part = part_path(target.stem)
        self._size = (0, 0)
        self._words: tuple[str, ...] = ()
        self._numbers = array("Q")
        self._out: IO[str] | None = None
        refuse_foreign(self._json)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The folder, and the JSON file."""
        return (self.path, self._json)

    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
    ) -> Any:
        """The PNG, the size, the segments, and the words."""
        png = super().prepare(frame, labels, colours)
        return png, labels.shape, segments_info(labels, names), () if names is None else names.words

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Write the PNG, and list it."""
        png, self._size, segments, self._words = prepared
        path = super().write(number, time, png)
        entry = {"png": path.relative_to(self._json.parent).as_posix(), "segments_info": segments}
        try:
            if self._out is None:
                self._out = self._part.open("w")
                self._out.write(f'{{"info": {json.dumps(OWN_JSON)},\n"annotations": [')
            (annotation,) = _annotations(entry, number + 1, iter(()))
            self._out.write(f"{',' if self._numbers else ''}\n{json.dumps(annotation)}")
        except OSError as error:
            raise explain(self._json, error, f"{len(self._numbers)} frames were done") from None
        self._numbers.append(number)
        return path

    def close(self) -> None:
        """Finish the JSON file."""
        super().close()
        if self._out is None:
            return
        out, self._out = self._out, None
        try:
            with out:
                out.write('\n],\n"images": [')
                for index, number in enumerate(self._numbers):
                    entry = {"name": f"{self._name}/{number:06d}.jpg", "size": self._size}
                    (image,) = images_of(entry, number + 1, iter(()))
                    out.write(f"{',' if index else ''}\n{json.dumps(image)}")
                out.write(f'\n],\n"categories": {json.dumps(categories(self._words, CATEGORY))}\n}}\n')
            self._part.replace(self._json)
        except OSError as error:
            raise explain(self._json, error, "the pictures of the frames are whole") from None
        finally:
            self._part.unlink(missing_ok=True)


def _png(
    frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None, names: Names | None
) -> bytes:
    return encode_png(encode_ids(labels)[..., ::-1], flat=True)


def encode_ids(labels: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Labels int [H, W] as a picture uint8 [H, W, 3] RGB: the id, label + 1, is R + 256·G + 65536·B; 0 is void.

    Raises ValueError where a label has no id: below 0 or from 2²⁴ − 1.
    """
    if labels.size and not 0 <= labels.min() <= labels.max() < (1 << 24) - 1:
        raise ValueError(f"labels: expected 0 to {(1 << 24) - 2}, found {labels.min()} to {labels.max()}")
    ids = (labels.astype(np.uint32) + 1).astype("<u4")
    return np.ascontiguousarray(ids[..., None].view(np.uint8)[..., :3])


def segments_info(labels: NDArray[np.int32], names: Names | None = None) -> list[dict[str, Any]]:
    """For every segment of labels int [H, W] its id, category_id, area, bbox (x, y, width, height) and iscrowd.

    With `names` also its score.
    """
    found = measure(labels)
    return [
        {"id": label + 1, "category_id": FIRST, "area": area, "bbox": box, "iscrowd": 0} | category_of(label, names)
        for label, area, box in zip(found.labels.tolist(), found.areas.tolist(), found.boxes.tolist(), strict=True)
    ]


def _entry(target: Target, labels: NDArray[np.int32], names: Names | None) -> dict[str, Any]:
    png = target.path("_panoptic.png").relative_to(target.folder).as_posix()
    segments = segments_info(labels, names)
    return {"name": target.name, "png": png, "size": list(labels.shape), "segments_info": segments}


def _annotations(entry: dict[str, Any], number: int, numbers: Iterator[int]) -> Iterable[dict[str, Any]]:
    yield {"image_id": number, "file_name": entry["png"], "segments_info": entry["segments_info"]}


def _restored(name: str, size: list[int], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    (annotation,) = annotations
    return {
        "name": name,
        "png": annotation["file_name"],
        "size": size,
        "segments_info": annotation["segments_info"],
    }


LISTING = Listing(
    "panoptic", {"images": images_of, "annotations": _annotations}, {}, _restored, "segments_info", CATEGORY
)

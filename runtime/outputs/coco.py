"""COCO's instances: `instances.json` for all photographs of a folder, `<name>_instances.json` for a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import DiffSegError
from runtime.outputs.categories import FIRST, categories, category_of
from runtime.outputs.listing import Listing, ListSink, images_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from runtime.outputs.form import ClipForm
    from runtime.outputs.sinks import Sink
    from runtime.outputs.target import Target
    from runtime.words import Names

CATEGORY: dict[str, object] = {"supercategory": ""}


def picture(target: Target) -> Sink:
    """A line of the listing."""
    return ListSink(LISTING, target, _entry)


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_instances.json`, in the form of YouTube-VIS."""
    from runtime.outputs.tracks import TracksSink

    return TracksSink(target.path("_instances.json"), target.key, describe, CATEGORY)


def describe(labels: NDArray[np.int32], names: Names | None = None) -> list[dict[str, Any]]:
    """For every segment of labels int [H, W], not negative: `label`, `segmentation`, `area`, `bbox`, `iscrowd`.

    With `names` also `category_id` and `score`.

    `segmentation` is pycocotools' compressed RLE, with `counts` as text; `bbox` is x, y, width, height.
    Raises DiffSegError where pycocotools is missing.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise DiffSegError('coco needs pycocotools: pip install "diffseg[coco]"') from None
    height, width = labels.shape
    present, counts = _run_lengths(labels)
    encoded = mask.frPyObjects([{"size": [height, width], "counts": one} for one in counts], height, width)
    areas = [mask.area(one) for one in encoded]  # of a list of more than 255 it fails
    boxes = mask.toBbox(encoded)
    return [
        {
            "label": label,
            "segmentation": {"size": [height, width], "counts": one["counts"].decode()},
            "area": int(area),
            "bbox": [int(number) for number in box],
            "iscrowd": 0,
            **category_of(label, names),
        }
        for label, one, area, box in zip(present, encoded, areas, boxes, strict=True)
    ]


def dataset(labels: NDArray[np.int32], name: str = "", names: Names | None = None) -> dict[str, Any]:
    """The whole data set of one picture, as `pycocotools.coco.COCO.dataset` has it."""
    entry = {"name": name, "size": list(labels.shape), "annotations": describe(labels, names)}
    numbers = iter(range(1, len(entry["annotations"]) + 1))
    return {"images": list(images_of(entry, 1, numbers)), "annotations": list(_annotations(entry, 1, numbers))} | {
        "categories": categories(() if names is None else names.words, CATEGORY)
    }


def _run_lengths(labels: NDArray[np.int32]) -> tuple[list[int], list[list[int]]]:
    """The labels that are there, and for each the lengths of runs without and with it, in turns, down the columns."""
    flat = labels.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], len(flat))
    order = np.argsort(flat[starts], kind="stable")
    values = flat[starts][order]
    present, first = np.unique(values, return_index=True)
    counts = []
    for runs in np.split(order, first[1:]):
        edges = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        lengths = np.diff(edges, prepend=0)
        counts.append(np.append(lengths, len(flat) - edges[-1]).tolist() if edges[-1] < len(flat) else lengths.tolist())
    return present.tolist(), counts


def _entry(target: Target, labels: NDArray[np.int32], names: Names | None) -> dict[str, Any]:
    return {"name": target.name, "size": list(labels.shape), "annotations": describe(labels, names)}


def _annotations(entry: dict[str, Any], number: int, numbers: Iterator[int]) -> Iterable[dict[str, Any]]:
    for annotation in entry["annotations"]:
        yield {"id": next(numbers), "image_id": number, "category_id": FIRST, **annotation}


def _restored(name: str, size: list[int], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    keys, optional = ("label", "segmentation", "area", "bbox", "iscrowd"), ("category_id", "score")
    found = [{key: one[key] for key in keys} | {key: one[key] for key in optional if key in one} for one in annotations]
    return {"name": name, "size": size, "annotations": found}


LISTING = Listing(
    "instances", {"images": images_of, "annotations": _annotations}, {}, _restored, "annotations", CATEGORY
)

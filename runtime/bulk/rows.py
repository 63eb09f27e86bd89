"""Rows of the output: what a result, or an error, is in a Parquet file, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import DiffSegError
from runtime.files import DAMAGE
from runtime.result import Result

if TYPE_CHECKING:
    from numpy.typing import NDArray

METADATA = b"diffseg"  # the key, in a Parquet file's metadata, of a JSON object about its shard
COLUMNS = (
    ("id", "string", "names the image in its data set; of a frame CLIP#FRAME"),
    ("path", "string", "the path or URI that was read"),
    ("frame", "int64", "its number in the clip; null for photographs"),
    ("time", "double", "of a frame: seconds from the clip's beginning"),
    ("height", "int32", "pixels; null where it could not be read"),
    ("width", "int32", "likewise"),
    ("count", "int32", "number of segments"),
    ("labels", "list<int32>", "the label of each segment: 0 … count - 1; of a frame the identity"),
    ("rle", "list<string>", "each segment's COCO RLE: the compressed `counts`; its `size` is [height, width]"),
    ("areas", "list<int32>", "pixels of each segment"),
    ("boxes", "list<list<int32>>", "x, y, width, height of each segment"),
    ("names", "list<string>", "each segment's word, null where it has none; null without words"),
    ("scores", "list<float>", "the share of its best word; null without words"),
    ("thresholds", "list<float>", "KL threshold of each iteration; null with auto"),
    ("engine", "string", "hash of the engine's content"),
    ("settings", "string", "hash of the engine, the device's kind, the version and the settings"),
    ("milliseconds", "float", "wall time of all stages"),
    ("error", "string", "why there are no segments; null where there are"),
)


def schema() -> Any:
    """The `pyarrow.Schema` of a shard. README.md lists the columns."""
    import pyarrow as pa

    plain = {
        "string": pa.string(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "double": pa.float64(),
        "float": pa.float32(),
    }

    def kind(text: str) -> Any:
        return pa.list_(kind(text[5:-1])) if text.startswith("list<") else plain[text]

    return pa.schema([(name, kind(text)) for name, text, _ in COLUMNS])


def result_row(result: Result) -> dict[str, Any]:
    """A result's part of a row: `height`, `width`, `count`, `labels`, `rle`, `areas`, `boxes`, words, `milliseconds`.

    Raises DiffSegError where pycocotools is missing.
    """
    from runtime.outputs.coco import describe

    found = describe(result.labels)
    height, width = result.labels.shape
    labels = [one["label"] for one in found]
    names = result.names
    return {
        "height": height,
        "width": width,
        "count": len(found),
        "labels": labels,
        "rle": [one["segmentation"]["counts"] for one in found],
        "areas": [one["area"] for one in found],
        "boxes": [one["bbox"] for one in found],
        "names": None if names is None else [names[label] for label in labels],
        "scores": None if names is None else [names.score(label) for label in labels],
        "milliseconds": result.milliseconds.get("total"),
    }


def labels_of(row: Mapping[str, Any]) -> NDArray[np.int32]:
    """The labels int32 [H, W] of a row.

    Raises DiffSegError where its RLE does not cover the picture, or pycocotools is missing.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise DiffSegError('reading needs pycocotools: pip install "diffseg[bulk]"') from None
    size = [int(row["height"]), int(row["width"])]
    labels = np.full(size, -1, np.int32)
    for label, counts in zip(row["labels"], row["rle"], strict=True):
        labels[mask.decode({"size": size, "counts": counts.encode()}) > 0] = label
    if labels.size and labels.min() < 0:
        raise DiffSegError(f"{row['id']}: expected segments that cover the picture, found others; segment it again")
    return labels


def as_result(row: Mapping[str, Any]) -> Result | DiffSegError:
    """The result of a row, or its error. A frame's labels are identities."""
    if row.get("error") is not None:
        return DiffSegError(str(row["error"]))
    labels = labels_of(row)
    identities = None if row.get("frame") is None else np.sort(np.array(row["labels"], np.int32))
    return Result(labels, int(row["count"]), {"total": float(row["milliseconds"] or 0)}, identities=identities)


def encode_shard(rows: Iterable[Mapping[str, Any]], about: Mapping[str, object]) -> bytes:
    """A Parquet file of rows; `about` goes into its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = schema().with_metadata({METADATA: json.dumps(dict(about)).encode()})
    table = pa.Table.from_pylist(list(rows), schema=kept)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=3)
    return bytes(sink.getvalue())


def about_shard(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any] | None:
    """What `encode_shard` has put into a file's metadata; None for a file that is not ours."""
    try:
        found = json.loads((metadata or {})[METADATA])
        return found if isinstance(found, dict) else None
    except DAMAGE:
        return None

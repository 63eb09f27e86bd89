"""The map function: rows in, rows out, in the same form and order."""

import ast
from pathlib import Path

import cv2
import numpy as np
import pytest

import runtime.bulk
from runtime.bulk.batch import decode
from runtime.bulk.rows import COLUMNS, labels_of
from runtime.errors import DiffSegError
from tests.runtime.clips import draw


def rows_of(folder):
    paths = sorted(folder.rglob("*.png"))
    return [{"id": path.stem, "path": str(path)} for path in paths]


def test_labels_are_those_of_the_segmenter_however_the_image_comes(pictures, segment):
    rows = rows_of(pictures)
    frames = [cv2.imread(row["path"]) for row in rows]
    expected = [segment.segmenter(frame).labels for frame in frames]
    forms = [
        rows,
        [{"id": row["id"], "bytes": Path(row["path"]).read_bytes()} for row in rows],
        [{"id": row["id"], "frame": frame} for row, frame in zip(rows, frames, strict=True)],
        [{"path": row["path"]} for row in rows],
        [{"id": row["id"], "path": Path(row["path"]).as_uri()} for row in rows],
        decode(rows, segment.size),
        decode(rows, None),
    ]
    for form in forms:
        found = segment(form)
        assert [row["error"] for row in found] == [None] * len(rows)
        assert [row["id"] for row in found] == [str(row.get("id", row.get("path"))) for row in form]
        for row, labels in zip(found, expected, strict=True):
            np.testing.assert_array_equal(labels_of(row), labels)
            assert sum(row["areas"]) == labels.size and row["count"] == labels.max() + 1
            assert (row["engine"], row["settings"], row["thresholds"]) == (segment.engine, segment.made, [1.0])
            assert set(row) == {name for name, _, _ in COLUMNS}


def test_columns_give_columns(pictures, segment):
    rows = rows_of(pictures)
    columns = {name: np.array([row[name] for row in rows]) for name in ("id", "path")}
    found = segment(columns)
    assert list(found) == [name for name, _, _ in COLUMNS]
    assert found["rle"] == [row["rle"] for row in segment(rows)]
    assert segment([]) == [] and segment({"path": []})["id"] == []


def test_what_cannot_be_read_is_a_row_with_its_reason(pictures, segment):
    (pictures / "bad.jpg").write_bytes(b"no picture")
    good, *_ = rows_of(pictures)
    given = [
        good,
        {"path": str(pictures / "bad.jpg")},
        {"id": "gone", "path": "gone.png"},
        {"id": "none", "path": None},
    ]
    assert segment([{**good, "bytes": float("nan"), "frame": None}])[0]["error"] is None  # as pandas gives it
    (number,) = segment([{"bytes": 10**12}])
    assert "expected an encoded picture in bytes, found int" in number["error"]
    found = segment(given)
    assert [row["error"] is None for row in found] == [True, False, False, False]
    assert "no such file" in found[2]["error"] and "expected bytes or a path" in found[3]["error"]
    assert found[1]["rle"] is None and found[1]["id"] == str(pictures / "bad.jpg")
    again = segment(decode(given, segment.size))
    assert [row["error"] for row in again] == [row["error"] for row in found]


@pytest.mark.parametrize("batch", [{"id": ["a"], "text": ["b"]}, [{"id": "a"}], ["photo.png"], "photo.png", [1]])
def test_a_batch_without_images_is_refused(segment, batch):
    with pytest.raises(DiffSegError, match=r"batch: expected "):
        segment(batch)
    with pytest.raises(DiffSegError, match="one length"):
        segment({"id": ["a", "b"], "path": ["a"]})


def test_a_large_frame_is_not_carried_along_where_only_its_size_counts(segment):
    (row,) = decode([{"id": "a", "bytes": cv2.imencode(".png", draw(0, (480, 640)))[1].tobytes()}], segment.size)
    assert row["resized"].shape == (32, 32, 3) and (row["height"], row["width"]) == (480, 640)
    assert "frame" not in row
    assert segment([row])[0]["height"] == 480


def test_only_one_module_knows_ray():
    names = {}
    for path in Path(runtime.bulk.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names.setdefault(path.stem, set()).update(name.split(".")[0] for name in found)
    assert [name for name, imported in names.items() if "ray" in imported] == ["cluster"]
    with pytest.raises(AttributeError):
        runtime.bulk.nothing  # noqa: B018

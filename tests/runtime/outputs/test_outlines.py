"""Polygons drawn again give the labels back, holes and pieces included, and neighbours share their borders."""

import itertools

import cv2
import numpy as np
import pytest

from runtime.outputs.outlines import TOLERANCE, outlines
from runtime.outputs.polygons import geojson
from runtime.outputs.yolo import bridged, yolo_lines


def fill(rings, size):
    """bool [H, W]: pixels whose centre is inside the rings by the even-odd rule."""
    height, width = size
    crossings = np.zeros((height, width + 1), np.int64)
    for ring in rings:
        for (x0, y0), (x1, y1) in itertools.pairwise([*np.asarray(ring, float), np.asarray(ring[0], float)]):
            if y0 != y1:
                rows = np.arange(np.ceil(min(y0, y1) - 0.5), np.ceil(max(y0, y1) - 0.5)).astype(int)
                columns = np.ceil(x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0) - 0.5).astype(int)
                np.add.at(crossings, (rows, columns.clip(0, width)), 1)
    return np.cumsum(crossings, axis=1)[:, :width] % 2 == 1


def area(ring):
    x, y = np.asarray(ring, float).T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


def blobs(seed):
    """Labels int32 with holes, pieces, single pixels and corners that touch; some labels are absent."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 60, 2)
    noise = cv2.GaussianBlur(rng.normal(size=size).astype(np.float32), (0, 0), [0.5, 1, 2, 4][seed % 4])
    return (2 * np.searchsorted(np.quantile(noise, [0.2, 0.4, 0.6, 0.8]), noise)).astype(np.int32)


def test_a_square_with_a_hole_and_a_piece_inside_it():
    labels = np.zeros((7, 9), np.int32)
    labels[1:6, 1:8] = 3
    labels[2:5, 2:7] = 0
    labels[3, 3:5] = 3
    found = outlines(labels, 0)
    assert list(found) == [0, 3]
    (outer, hole), (island,) = found[3]
    assert {tuple(corner) for corner in outer.tolist()} == {(1, 1), (8, 1), (8, 6), (1, 6)} and area(outer) == 35
    assert {tuple(corner) for corner in hole.tolist()} == {(2, 2), (7, 2), (7, 5), (2, 5)} and area(hole) == -15
    assert area(island) == 2
    assert [len(piece) for piece in found[0]] == [2, 2]


@pytest.mark.parametrize("tolerance", [TOLERANCE, 0])
@pytest.mark.parametrize("seed", range(12))
def test_polygons_drawn_again_are_the_labels(seed, tolerance):
    labels = blobs(seed)
    found = outlines(labels, tolerance)
    assert list(found) == np.unique(labels).tolist()
    for label, pieces in found.items():
        parts = [fill(piece, labels.shape) for piece in pieces]
        assert np.array_equal(np.sum(parts, axis=0), labels == label)  # and pieces do not overlap
        count, regions = cv2.connectedComponents((labels == label).view(np.uint8), connectivity=4)
        assert len(pieces) == count - 1
        for number, (piece, part) in enumerate(zip(pieces, parts, strict=True), 1):
            assert np.array_equal(part, regions == number)
            assert tolerance or sum(map(area, piece)) == part.sum()
        for piece in pieces:
            assert area(piece[0]) > 0 and all(area(hole) < 0 for hole in piece[1:])
            for ring in piece:
                assert len({tuple(corner) for corner in ring.tolist()}) == len(ring) >= 3  # touches itself nowhere


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.slow
def test_neighbours_share_their_border(seed):
    labels = blobs(seed)
    edges = [
        edge
        for pieces in outlines(labels).values()
        for piece in pieces
        for ring in piece
        for edge in itertools.pairwise([*map(tuple, ring.tolist()), tuple(ring[0].tolist())])
    ]
    assert len(set(edges)) == len(edges)
    height, width = labels.shape
    for start, end in edges:
        frame = (start[0] == end[0] and start[0] in (0, width)) or (start[1] == end[1] and start[1] in (0, height))
        assert ((end, start) in set(edges)) != frame


def test_a_slanted_border_gets_few_corners():
    labels = (np.add.outer(np.arange(80), np.arange(120)) > 90).astype(np.int32)
    assert sum(len(ring) for ring in outlines(labels)[1][0]) < 8 < 80 < len(outlines(labels, 0)[1][0][0])


@pytest.mark.parametrize("seed", range(8))
def test_yolo_lines_drawn_again_are_the_labels(seed):
    """Read as Ultralytics reads them: a line is split at white space into a class and pairs x, y."""
    labels = blobs(seed)
    lines = yolo_lines(labels)
    covered = np.zeros(labels.shape, int)
    expected = [(label, piece) for label, pieces in outlines(labels).items() for piece in pieces]
    for line, (label, piece) in zip(lines, expected, strict=True):
        words = line.split()
        polygon = np.array(words[1:], np.float32).reshape(-1, 2)
        assert words[0] == "0" and len(polygon) >= 3 and polygon.min() >= 0 and polygon.max() <= 1
        drawn = fill([polygon * labels.shape[::-1]], labels.shape)
        assert (labels[drawn] == label).all() and np.array_equal(drawn, fill(piece, labels.shape))
        covered += drawn
    assert (covered == 1).all()


def samples(ring, step=0.1):
    """Points along a ring's edges."""
    ring = np.asarray(ring, float)
    for start, end in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        count = int(np.ceil(np.hypot(*(end - start)) / step))
        yield from start + np.arange(count)[:, None] / count * (end - start)


def to_rings(points, rings):
    """Distance of points [n, 2] to the nearest edge of some rings."""
    starts = np.concatenate([np.asarray(ring, float) for ring in rings])
    steps = np.concatenate([np.roll(ring, -1, axis=0) - np.asarray(ring, float) for ring in rings])
    along = ((points[:, None] - starts) * steps).sum(axis=2) / np.maximum((steps**2).sum(axis=1), 1e-12)
    return np.hypot(*(points[:, None] - starts - along.clip(0, 1)[..., None] * steps).transpose(2, 0, 1)).min(axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_point_of_a_border_moves_by_more_than_half_a_pixel(seed):
    """Both ways, and of what is read back from the text of shares, too."""
    labels = blobs(seed)
    exact, simple = outlines(labels, 0), outlines(labels)
    lines = iter(yolo_lines(labels))
    for label, pieces in simple.items():
        for piece, own in zip(pieces, exact[label], strict=True):
            read = np.array(next(lines).split()[1:], float).reshape(-1, 2) * labels.shape[::-1]
            for one, other in ((piece, own), (own, piece), (own, [read])):
                assert to_rings(np.array([point for ring in one for point in samples(ring)]), other).max() <= 0.5


def test_a_bridge_has_no_width():
    square, hole = np.array([[0, 0], [9, 0], [9, 9], [0, 9]]), np.array([[3, 3], [3, 6], [6, 6], [6, 3]])
    ring = bridged([square, hole])
    assert len(ring) == 4 + 4 + 2 and area(ring) == 81 - 9


def test_geojson_has_polygons_and_multipolygons():
    labels = np.zeros((6, 8), np.int32)
    labels[1:3, 1:3] = labels[4:, 4:] = 5
    found = geojson(labels)
    assert found["type"] == "FeatureCollection" and found["size"] == [6, 8]
    ground, pieces = found["features"]
    assert (ground["id"], ground["geometry"]["type"]) == (0, "Polygon")
    assert len(ground["geometry"]["coordinates"]) == 2  # with a hole
    assert pieces["properties"] == {"index": 5, "area": 12, "box": [1, 1, 7, 5]}
    assert pieces["geometry"]["type"] == "MultiPolygon" and len(pieces["geometry"]["coordinates"]) == 2
    assert all(ring[0] == ring[-1] for polygon in pieces["geometry"]["coordinates"] for ring in polygon)

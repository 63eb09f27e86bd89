"""The page's own merge, resizing and files: equal to those of the Python packages."""

import json

import cv2
import numpy as np
import pytest

from runtime.frames.resize import resize_frame
from runtime.merge.parts import find_parts
from runtime.merge.segment import segment_attention
from runtime.merge.suppress import renumber, suppress
from runtime.outputs.draw import draw_overlay
from runtime.outputs.palette import Painter, distances, palette
from runtime.page.site import palette_of
from runtime.pyramid.anchors import anchor_queries
from runtime.pyramid.config import MergeConfig
from runtime.pyramid.weights import resolution_ratios
from runtime.refine.refinement import Refinement
from tests.runtime.merge.plain import random_pyramid, reference, stripes
from tests.runtime.page.scripts import run_script

MERGE = """
import { aggregate } from "./aggregate.js";
import { Kept, suppress } from "./merge.js";
import { chooseParts } from "./parts.js";
export default ({ maps, grids, ratios, anchors, thresholds, size }) => {
  let at = 0;
  const levels = grids.map(([h, w]) => maps.subarray(at, (at += (h * w) ** 2)));
  const kept = new Kept(aggregate(levels, grids, ratios), grids[0], anchors);
  if (thresholds.length > 1) kept.settle(1);
  const scores = (some) => some[0] === "auto" ? chooseParts(kept, some[1]).scores : kept.propose(some);
  const found = thresholds.map((some) => suppress(scores(some), grids[0], size));
  return Object.fromEntries(found.map((labels, i) => [i, labels]));
};
"""


def merged(folder, pyramid, grids, grid, thresholds, size):
    """Labels [H, W] of the page's merge for each of some thresholds, one after the other on one kept picture.

    A threshold may be ("auto", the usual ones).
    """
    given = {
        "maps": np.concatenate([level.ravel() for level in pyramid]),
        "grids": grids,
        "ratios": resolution_ratios("proportional", grids),
        "anchors": anchor_queries(grids[0], grid).tolist(),
        "thresholds": [list(some) for some in thresholds],
        "size": size,
    }
    found = run_script(folder, MERGE, **given)
    return [found[str(index)].reshape(size) for index in range(len(thresholds))]


@pytest.mark.parametrize(
    "index", [pytest.param(0, marks=pytest.mark.slow), *(pytest.param(i, marks=pytest.mark.proof) for i in (1, 2))]
)
def test_reference_labels(index, tmp_path):
    pyramid, expected = reference(index)
    grids = [(round(len(level) ** 0.5),) * 2 for level in pyramid]
    size = expected["labels"].shape
    labels = merged(tmp_path, pyramid, grids, int(expected["grid"]), [expected["thresholds"].tolist()], size)[0]
    assert np.mean(labels != expected["labels"]) <= 0.001


@pytest.mark.parametrize("grids", [[(16, 24), (8, 12), (4, 6)], [(11, 9), (6, 5)]], ids=str)
def test_labels_equal_those_of_the_package(grids, tmp_path):
    size = (grids[0][0] * 8, grids[0][1] * 8)
    pyramid = random_pyramid(np.random.default_rng(3), grids, sharpness=2, dtype=np.float32)
    thresholds = [(0.3, 0.3, 0.3), (2.0,) * 3, (0.02, 0.05), (0.3, 0.3, 0.3), (0.6, 0.2)]
    found = merged(tmp_path, pyramid, grids, 7, thresholds, size)
    wanted = [segment_attention(pyramid, MergeConfig(some, 7), size=size, grids=grids) for some in thresholds]
    for labels, expected in zip(found, wanted, strict=True):
        assert np.mean(labels != expected) <= 0.001
    assert len({int(expected.max()) for expected in wanted}) >= 3


@pytest.mark.parametrize(
    ("grids", "usual"), [([(16, 24), (8, 12)], 0.3), ([(32, 32), (16, 16)], 0.5), ([(9, 7)], 4.0)], ids=str
)
def test_auto_equals_that_of_the_package(grids, usual, tmp_path):
    pyramid = random_pyramid(np.random.default_rng(5), grids, sharpness=2, dtype=np.float32)
    size, usual = (grids[0][0] * 4, grids[0][1] * 4), (usual,) * 3
    found = find_parts(pyramid, MergeConfig(usual, 7), grids=grids)
    wanted = suppress(found.scores, grids[0], size)
    labels = merged(tmp_path, pyramid, grids, 7, [("auto", usual)], size)[0]
    assert np.mean(labels != wanted) <= 0.001 and len(found.proposals) >= 3


ALIKE = """
import { aggregate } from "./aggregate.js";
import { Kept } from "./merge.js";
import { chooseParts } from "./parts.js";
export default ({ maps, shape, anchors }) => {
  const kept = new Kept(aggregate([maps], [shape], [1]), shape, anchors);
  return { alike: chooseParts(kept, [0.5]).alike };
};
"""


def test_what_is_seen_as_one_is_that_of_the_package(tmp_path):
    pyramid = stripes((12, 20))
    expected = find_parts(pyramid, MergeConfig((0.5,), 7), grids=[(12, 20)]).alike
    given = {"maps": pyramid[0].ravel(), "shape": (12, 20), "anchors": anchor_queries((12, 20), 7).tolist()}
    found = run_script(tmp_path, ALIKE, **given)["alike"]
    assert np.array_equal(np.unique(found, return_inverse=True)[1], expected.ravel())


AGGREGATE = """
import { aggregate } from "./aggregate.js";
export default ({ maps, bad }) => {
  maps[5] = bad === null ? NaN : bad;
  try { aggregate([maps], [[8, 8]], [1]); } catch (error) { return { said: error.message }; }
  return {};
};
"""


def test_maps_that_are_no_probabilities_are_an_error(tmp_path):
    maps = random_pyramid(np.random.default_rng(3), [(8, 8)], dtype=np.float32)[0]
    for bad in (None, -1):
        assert "no probabilities" in run_script(tmp_path, AGGREGATE, maps=maps, bad=bad)["said"]


RESIZE = """
import { resizePicture } from "./resize.js";
export default ({ pixels, from, to, band }) => {
  const rows = (top, count) => pixels.subarray(top * from[1] * 4, (top + count) * from[1] * 4);
  return { frame: resizePicture(rows, from, to, band) };
};
"""


@pytest.mark.parametrize(
    ("size", "most"),
    [((128, 128), 0), ((64, 64), 0), ((192, 160), 0), ((333, 451), 1), ((40, 30), 1), ((37, 300), 1), ((1, 1), 0)],
    ids=str,
)
def test_a_picture_is_resized_as_the_runtime_does_it(size, most, tmp_path):
    frame = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8), (3, 3), 0)
    rgba = np.ascontiguousarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGBA))
    found = run_script(tmp_path, RESIZE, pixels=rgba, **{"from": size, "to": (64, 64), "band": 50})["frame"]
    difference = np.abs(found.reshape(64, 64, 3).astype(int) - resize_frame(frame, 64, 64))
    assert difference.max() <= most
    assert (difference > 0).mean() <= 0.002


FILES = """
import { Labels, coco, coloursOf, outline, painter } from "./labels.js";
import { encodePng } from "./png.js";
export default async ({ raw, inside, size, palette, least, numbers, shape }) => {
  const labels = new Labels(raw, inside, size, least, numbers && { numbers, shape });
  const row = new Int32Array(labels.width), all = [];
  for (let y = 0; y < labels.height; y++) all.push(...labels.row(y, row));
  const colours = coloursOf(labels, palette), next = painter(labels, colours), four = painter(labels, colours, 4);
  const painted = [], shown = [];
  for (let y = 0; y < labels.height; y++) { painted.push(...next().colours); shown.push(...four().colours); }
  const bits = labels.count > 256 ? 16 : 8;
  const png = await encodePng(size, 1, bits, (y, out) => {
    labels.row(y, row);
    if (bits === 8) out.set(row);
    else row.forEach((label, x) => { [out[2 * x], out[2 * x + 1]] = [label >> 8, label]; });
  });
  return {
    labels: Int32Array.from(all), areas: labels.areas, painted: Uint8Array.from(painted),
    shown: Uint8Array.from(shown), coco: coco(labels, "picture"),
    png: new Uint8Array(await png.arrayBuffer()), rings: outline(labels, labels.at(0, 0)),
  };
};
"""


@pytest.mark.parametrize(
    ("segments", "size"), [(5, (40, 50)), (60, (401, 404)), (300, (64, 64)), (30, (10, 90))], ids=str
)
def test_labels_and_files_of_a_picture(segments, size, tmp_path):
    rng = np.random.default_rng(segments)
    at = rng.uniform(0, 32, (segments, 2))
    y, x = np.mgrid[:32, :48]
    raw = np.square(np.stack([y, x], -1)[:, :, None] - at * (1, 1.5)).sum(-1).argmin(-1).astype(np.int32)
    found = run_script(tmp_path, FILES, raw=raw, inside=raw.shape, size=size, palette=palette_of(), least=0)
    labels = found["labels"].reshape(size)
    wanted = cv2.resize(raw, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    # Where a pixel's centre is exactly between two places, versions of OpenCV differ.
    surely = [(2 * np.arange(to) + 1) * side % (2 * to) != 0 for side, to in zip(raw.shape, size, strict=True)]
    present = np.unique(wanted)
    assert len(present) == labels.max() + 1
    assert (present[labels] == wanted)[np.ix_(*surely)].all() and (present[labels] == wanted).mean() > 0.95
    assert (renumber(labels)[0] == labels).all()
    assert found["areas"] == np.bincount(labels.ravel()).tolist()
    encoded = cv2.imdecode(found["png"], cv2.IMREAD_UNCHANGED)
    assert encoded.dtype == (np.uint16 if labels.max() > 255 else np.uint8) and (encoded == labels).all()
    drawn = draw_overlay(np.zeros((*size, 3), np.uint8), labels, 1, colours=Painter()(labels))
    assert (found["painted"].reshape(*size, 3)[..., ::-1] == drawn).all()
    assert (found["shown"].reshape(*size, 4) == np.dstack([drawn[..., ::-1], np.full(size, 255, np.uint8)])).all()
    segment = cv2.resize(raw, (48, 32), interpolation=cv2.INTER_NEAREST) == raw[0, 0]
    rings = [np.array(ring) * (48, 32) for ring in found["rings"]]
    area = sum(np.roll(ring, -1, 0)[:, 1] @ ring[:, 0] - np.roll(ring, -1, 0)[:, 0] @ ring[:, 1] for ring in rings) / 2
    corners = 0.125 * sum(len(ring) for ring in rings)
    assert abs(abs(area) - segment.sum()) <= corners + 0.5  # middles of edges cut corners


@pytest.mark.parametrize(
    ("segments", "size", "least"),
    [(40, (97, 130), 0.002), (200, (20, 40), 0.02), (3, (50, 50), 0.9)],
    ids=str,
)
def test_pieces_are_those_of_the_package(segments, size, least, tmp_path):
    rng = np.random.default_rng(segments)
    blobs = cv2.resize(
        rng.integers(0, segments, (12, 16)).astype(np.float32), (48, 32), interpolation=cv2.INTER_NEAREST
    )
    raw = np.where(rng.random(blobs.shape) < 0.1, rng.integers(0, segments, blobs.shape), blobs).astype(np.int32) % 7
    found = run_script(tmp_path, FILES, raw=raw, inside=raw.shape, size=size, palette=palette_of(), least=least)
    kept = run_script(tmp_path, FILES, raw=raw, inside=raw.shape, size=size, palette=palette_of(), least=0)
    fitted = kept["labels"].reshape(size)  # those of OpenCV, but for ties between two places
    wanted, owner = Refinement(min_area=least, pieces="split").split(fitted)
    assert np.array_equal(found["labels"].reshape(size), wanted)
    assert found["areas"] == np.bincount(wanted.ravel()).tolist() and (len(owner) > 8 or segments < 4)
    alike = rng.integers(0, 2, (8, 12)).repeat(1 + (segments < 4))[:96].reshape(8, 12)
    given = {"raw": raw, "inside": raw.shape, "size": size, "palette": palette_of(), "least": least}
    found = run_script(tmp_path, FILES, **given, numbers=alike.astype(np.int32), shape=alike.shape)
    wanted, owner = Refinement(min_area=least, pieces="unlike").split(fitted, alike=alike)
    assert np.array_equal(found["labels"].reshape(size), wanted)


def test_coco_is_that_of_the_package(tmp_path):
    tools = pytest.importorskip("pycocotools.mask")
    from runtime.outputs.coco import dataset

    size = (40, 60)
    raw = (np.hypot(*np.mgrid[-16:16, -24:24]).astype(np.int32) // 6) * 2  # rings, and numbers with gaps
    found = run_script(tmp_path, FILES, raw=raw, inside=raw.shape, size=size, palette=palette_of(), least=0)
    assert json.loads(json.dumps(found["coco"])) == dataset(found["labels"].reshape(size), "picture")
    areas = [int(tools.area(one["segmentation"])) for one in found["coco"]["annotations"]]
    assert areas == found["areas"] and len(areas) > 3


def test_the_palette_of_the_page_is_the_packages():
    given = palette_of()
    assert np.array_equal(np.array(given["colours"])[:, ::-1], palette(64))
    assert np.abs(np.array(given["distances"]) - distances()).max() <= 0.01

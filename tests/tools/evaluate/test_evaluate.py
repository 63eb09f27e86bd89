"""The evaluation as a whole, on small drawn data sets in the layouts of the official downloads."""

import csv
import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from runtime import Segmenter
from runtime.engine.registry import EMBEDDED, open_engine
from runtime.errors import DiffSegError
from runtime.merge.segment import segment_attention
from runtime.pyramid.config import MergeConfig
from tests.tools.evaluate import drawn
from tools.evaluate.__main__ import app
from tools.evaluate.datasets import centre_square, open_dataset, resize_bilinear, resize_labels
from tools.evaluate.masks import PROTOCOLS, read_protocol, read_truths, shipped_protocol

COCO_IDS = shipped_protocol("coco-stuff-27").images


def run(tmp_path, *arguments, jobs=1, pictures=0):
    """Exit status 0 and the JSON, or the status and the message."""
    output = tmp_path / "out"
    options = ["--output", str(output), "--jobs", str(jobs), "--pictures", str(pictures), "--json"]
    result = CliRunner().invoke(app, [str(word) for word in arguments] + options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return (0, json.loads(result.stdout)) if result.exit_code == 0 else (result.exit_code, result.stderr)


def figures(tmp_path, *arguments, **options):
    status, summary = run(tmp_path, *arguments, **options)
    assert status == 0, summary
    return [row["figures"] for row in summary["results"]]


def nearest(labels, side):
    """Nearest neighbour with half-pixel centres, pixel by pixel."""
    index = [[int((i + 0.5) * length / side) for i in range(side)] for length in labels.shape]
    return labels[np.ix_(*index)]


def bilinear(frame, side):
    """Bilinear with half-pixel centres, clamped edges, no antialiasing, in float64."""
    out = frame.astype(np.float64)
    for axis in (0, 1):
        length = out.shape[axis]
        position = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
        below = np.floor(position).astype(int)
        share = (position - below).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        above = np.minimum(below + 1, length - 1)
        out = np.take(out, below, axis) * (1 - share) + np.take(out, above, axis) * share
    return out


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return drawn.coco(tmp_path_factory.mktemp("coco"), COCO_IDS[:4])


@pytest.mark.parametrize("thresholds", [(0.05, 0.08), (0.3, 0.3)], ids=["more segments than classes", "fewer"])
def test_paper_protocol_against_an_independent_computation(coco, tmp_path, monkeypatch, thresholds):
    """Crop, resizes, class map, histogram, assignment and sums, written out again from the paper's protocol."""
    from scipy.optimize import linear_sum_assignment

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    class_map = json.loads((PROTOCOLS / "coco-stuff-27.json").read_text())["labels"]
    engine = open_engine(EMBEDDED, "cpu", threads=1)
    config = MergeConfig(thresholds)
    true, missed, wrong, labelled, most = np.zeros(27), np.zeros(27), np.zeros(27), 0, 0
    for name in COCO_IDS[:4]:
        frame = cv2.imread(str(coco / f"val2017/{name}.jpg"))
        fine = cv2.imread(str(coco / f"stuffthingmaps_trainval2017/val2017/{name}.png"), cv2.IMREAD_UNCHANGED)
        side = min(fine.shape)
        top, left = (fine.shape[0] - side) // 2, (fine.shape[1] - side) // 2
        frame, fine = (one[top : top + side, left : left + side] for one in (frame, fine))
        truth = np.vectorize(lambda value: class_map[str(value)])(nearest(fine, 512))
        # Halves may round either way, and a level of one pixel may move a border: this step is held to its own test.
        network = resize_bilinear(frame, 256, 256)
        pyramid = [maps[0] for maps in engine.infer(network[None])]
        labels = segment_attention(pyramid, config, size=(512, 512))
        columns = max(27, labels.max() + 1)
        histogram = np.zeros((27, columns), np.int64)
        for row, column in zip(truth[truth >= 0], labels[truth >= 0], strict=True):
            histogram[row, column] += 1
        rows, chosen = linear_sum_assignment(histogram, maximize=True)
        for row, column in zip(rows, chosen, strict=True):
            true[row] += histogram[row, column]
            missed[row] += histogram[row].sum() - histogram[row, column]
            wrong[row] += histogram[:, column].sum() - histogram[row, column]
        labelled += (truth >= 0).sum()
        most = max(most, columns)
    with np.errstate(invalid="ignore"):
        iou = true / (true + missed + wrong)
    (found,) = figures(tmp_path, "coco-stuff-27", coco, "--partial", "--threshold", ",".join(map(str, thresholds)))
    assert found["accuracy"] == true.sum() / labelled
    assert found["miou"] == np.nanmean(iou)
    assert [np.nan if value is None else value for value in found["iou"].values()] == pytest.approx(iou, nan_ok=True)
    # The drawing is such that the protocol's finer points matter: surplus segments, absent classes, unlabelled pixels.
    assert (wrong[true == 0] > 0).any() and labelled < 4 * 512 * 512
    assert most > 27 if thresholds[0] < 0.2 else most == 27 and np.isnan(iou).any()


def test_pieces_of_the_protocol():
    draw = np.random.default_rng(0)
    frame = draw.integers(0, 256, (31, 45, 3)).astype(np.uint8)
    labels = draw.integers(-1, 27, (31, 45)).astype(np.int32)
    assert np.array_equal(centre_square(labels), labels[:, 7:38])
    for side in (31, 64, 512, 17):
        assert np.array_equal(resize_labels(centre_square(labels), side), nearest(labels[:, 7:38], side))
        difference = resize_bilinear(frame, side, side) - bilinear(frame, side)
        assert np.abs(difference).max() < 0.501


def test_protocols_are_complete():
    coco = shipped_protocol("coco-stuff-27")
    assert len(coco.images) == len(set(coco.images)) == 2175 and len(coco.labels) == 183
    assert coco.labels[255] == -1 and set(coco.labels.values()) == set(range(-1, 27)) and coco.crop == 512
    cityscapes = shipped_protocol("cityscapes-27")
    assert [cityscapes.labels[value] for value in range(7, 34)] == list(range(27)) and cityscapes.crop == 512
    assert {cityscapes.labels[value] for value in range(-1, 7)} == {-1}
    assert len(shipped_protocol("camvid").colours) == 32


def test_cityscapes_takes_the_papers_threshold_for_stable_diffusion_alone(tmp_path):
    from dataclasses import replace

    from tools.evaluate.variants import Wish, settle

    root = drawn.cityscapes(tmp_path / "city")
    status, message = run(tmp_path, "cityscapes-27", root, "--method", "one-segment")
    assert status == 1 and "expected 500 images, found 2" in message and "--partial" in message
    (found,) = figures(tmp_path, "cityscapes-27", root, "--method", "one-segment", "--partial")
    assert found["images"] == 2 and len(found["iou"]) == 27
    data = open_dataset("cityscapes-27", root, partial=True)
    spec = open_engine(EMBEDDED, "cpu", threads=1).spec
    for own, expected in (((1.1, 1.1, 1.1), (0.9, 0.9, 0.9)), (spec.thresholds, spec.thresholds)):
        variant = settle("diffseg", "e", replace(spec, thresholds=own), data.protocol, Wish())
        assert variant.thresholds == expected


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ((), {}),
        (
            ("--threshold", "auto", "--refine", "kmeans,snap", "--min-area", "0.01"),
            {"thresholds": "auto", "refine": "kmeans,snap", "min_area": 0.01},
        ),
    ],
    ids=["plain", "refined"],
)
def test_whole_images_are_segmented_as_the_product_does(tmp_path, words, options):
    """BSDS500 with every annotator: figures from runtime.Segmenter's labels, by the definitions."""
    from tests.tools.evaluate.test_metrics import table
    from tools.evaluate import metrics

    root = drawn.bsds(tmp_path / "bsds", annotators=3)
    (found,) = figures(tmp_path, "bsds", root, *words)
    segmenter = Segmenter.open(EMBEDDED, "cpu", **options)
    expected = []
    for seed in range(3):
        frame = cv2.imread(str(root / f"BSDS500/data/images/test/{seed}.jpg"))
        mask = drawn.scene(seed + 20)[1]
        tables = [table(one, segmenter(frame).labels) for one in (mask, mask // 2, (mask > 0).astype(int))]
        expected.append([np.mean([figure(one) for one in tables]) for figure in metrics.REGION_FIGURES.values()])
    assert [found[name] for name in metrics.REGION_FIGURES] == pytest.approx(np.mean(expected, 0), abs=1e-12)


def test_variants_share_a_run_and_differ(tmp_path):
    root = drawn.bsds(tmp_path / "bsds", count=2)
    axes = ("--weights", "proportional", "--weights", "32-only", "--similarity", "kl", "--similarity", "js")
    methods = [word for name in ("diffseg", "kmeans-c", "kmeans-s", "kmeans-lab") for word in ("--method", name)]
    status, summary = run(tmp_path, "bsds", root, *axes, *methods, "--threshold", "0.3")
    assert status == 0, summary
    rows = {json.dumps(row["settings"]): row["figures"] for row in summary["results"]}
    assert len(rows) == 2 * 2 + 2 + 2 + 1
    assert len({json.dumps(figures) for figures in rows.values()}) == len(rows)
    clusters = {row["settings"]["method"]: row["figures"]["segments"] for row in summary["results"]}
    assert clusters["kmeans-c"] == 6
    regions = [
        np.mean([len(np.unique(m)) for m in (mask, mask // 2)]) for mask in (drawn.scene(s)[1] for s in (20, 21))
    ]
    assert clusters["kmeans-s"] == np.mean([round(count) for count in regions])


def test_jensen_shannon_by_its_definition():
    from scipy.spatial.distance import jensenshannon

    from runtime.merge.proposals import merge_attention
    from tools.evaluate.divergence import jensen_shannon, merge_jensen_shannon

    draw = np.random.default_rng(1)
    maps = draw.dirichlet(np.full(64, 0.3), 64).astype(np.float32)
    expected = [jensenshannon(maps[0], other) ** 2 for other in maps]
    assert jensen_shannon(maps[0], maps) == pytest.approx(expected, abs=2e-6)
    # Two groups of maps far apart: any similarity merges them alike.
    groups = np.repeat(draw.dirichlet(np.full(64, 0.1), 2), 32, 0).astype(np.float32)
    assert np.allclose(
        merge_jensen_shannon(groups, (8, 8), 4, (0.1, 0.1)),
        merge_attention(groups, MergeConfig((0.4, 0.4), 4), (8, 8)),
        atol=1e-6,
    )


LAYOUTS = {
    "voc": ("JPEGImages", "SegmentationClass", (0, 1, 20, 255), drawn.save_palette, "ImageSets/Segmentation/val.txt"),
    "context": (
        "JPEGImages",
        "SegmentationClassContext",
        (0, 1, 59),
        drawn.save,
        "ImageSets/SegmentationContext/val.txt",
    ),
    "ade20k": ("images/validation", "annotations/validation", (0, 1, 150), drawn.save, None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_index_masks(name, tmp_path):
    images, masks, values, save_mask, listing = LAYOUTS[name]
    root = drawn.indexed(tmp_path / "set", images, masks, values, save_mask, count=3)
    if listing:
        (root / listing).parent.mkdir(parents=True)
        (root / listing).write_text("scene0\nscene2\n")
    data = open_dataset(name, root)
    assert [sample.name for sample in data.samples] == (
        ["scene0", "scene2"] if listing else ["scene0", "scene1", "scene2"]
    )
    labels = shipped_protocol(name).labels
    for seed, sample in zip((0, 2) if listing else (0, 1, 2), data.samples, strict=True):
        mask = drawn.scene(seed + 30)[1] % len(values)
        (truth,) = data.load(sample)[1]
        assert np.array_equal(truth, np.array([labels[value] for value in values])[mask])
    (found,) = figures(tmp_path, name, root, "--method", "one-segment")
    assert found["images"] == len(data.samples) and 0 < found["accuracy"] < 1


def test_camvid_index_masks_and_colours_are_the_same_truth(tmp_path):
    values = (3, 1, 10, 11)
    indices = drawn.indexed(tmp_path / "a", "test", "testannot", values, suffix=".png")
    colours = {3: (128, 0, 192), 1: (64, 192, 0), 10: (192, 0, 192), 11: (0, 0, 0)}  # lane, wall, scooter, void

    def save_colours(path, mask):
        picture = np.zeros((*mask.shape, 3), np.uint8)
        for value, rgb in colours.items():
            picture[mask == value] = rgb[::-1]
        drawn.save(path, picture)

    originals = ("701_StillsRaw_full", "LabeledApproved_full")
    coloured = drawn.indexed(tmp_path / "b", *originals, values, save_colours, ending="_L.png", suffix=".png")
    first, second = (open_dataset("camvid", root) for root in (indices, coloured))
    for one, other in zip(first.samples, second.samples, strict=True):
        assert np.array_equal(first.load(one)[1], second.load(other)[1])
    assert -1 in first.load(first.samples[0])[1][0]


def test_folders_with_classes_colours_arrays_and_unlabelled_values(tmp_path):
    root = drawn.indexed(tmp_path / "mine", "images", "masks", (7, 23, 9), count=1)
    (tmp_path / "map.json").write_text(json.dumps({"classes": ["road", "sky"], "labels": {"7": 0, "23": 1, "9": -1}}))
    found = figures(tmp_path, "folder", root, "--classes", tmp_path / "map.json", "--method", "one-segment")[0]
    assert set(found["iou"]) == {"road", "sky"}
    regions = figures(tmp_path, "folder", root, "--ignore", 9, "--method", "one-segment")[0]
    assert "accuracy" not in regions and regions["covering"] == found["covering"]
    mask = cv2.imread(str(root / "masks/scene0.png"), cv2.IMREAD_UNCHANGED)
    (root / "arrays").mkdir()
    np.save(root / "arrays/scene0.npy", mask.astype(np.int64))
    drawn.save(root / "colours/scene0.png", np.stack([mask, mask * 3, mask * 5], -1) * (mask != 9)[..., None])
    for folder, ignored in (("arrays", 9), ("colours", 0)):
        words = ("--masks", folder, "--ignore", ignored, "--method", "one-segment")
        assert figures(tmp_path, "folder", root, *words)[0]["covering"] == regions["covering"]


def test_what_is_wrong_is_said(tmp_path):
    def message(*arguments):
        status, text = run(tmp_path, *arguments, "--method", "one-segment")
        assert status == 1 and text.startswith("error: ") and "Traceback" not in text
        return text

    root = drawn.bsds(tmp_path / "bsds")
    assert "no folder" in message("bsds", tmp_path / "none")
    assert "expected images/test and groundTruth/test" in message("bsds", tmp_path)
    assert "camvid was not found" in message("camvid", root) and "found BSDS500/" in message("camvid", root)
    assert "--split" in message("bsds", root / "BSDS500/data/images")
    truths = root / "BSDS500/data/groundTruth/test"
    (truths / "1.mat").unlink()
    text = message("bsds", root)
    assert "1 of 3 images lack" in text and "1.mat" in text and "--partial" in text
    assert figures(tmp_path, "bsds", root, "--partial", "--method", "one-segment")[0]["images"] == 2
    # One image of several: named, the others are evaluated, and the status tells.
    drawn.save_annotators(truths / "1.mat", [np.zeros((5, 4), int)])
    text = message("bsds", root)
    assert "expected the size of its image 1.jpg, 150x97, found 4x5" in text and "1 of 3 images left out" in text
    assert json.loads((tmp_path / "out/results.json").read_text())["images"] == 2
    (truths / "1.mat").write_bytes(b"MATLAB")
    assert "1.mat: cannot be read as a MATLAB file" in message("bsds", root)
    # Values and pixels.
    values = drawn.indexed(tmp_path / "voc", "images", "masks", (0, 99), count=1)
    options = ("--images", "images", "--masks", "masks")
    assert "values, found 99" in message("voc", values, *options)
    empty = drawn.indexed(tmp_path / "empty", "images", "masks", (255,), count=1)
    assert "no pixel is labelled" in message("voc", empty, *options)
    # Settings.
    assert "expected one of 32-only, 16-only" in message("bsds", root, "--weights", "64-only", "--method", "diffseg")
    assert "expected 2 to 32" in message("bsds", root, "--grid", "40", "--method", "diffseg")
    assert "--threshold x" in message("bsds", root, "--threshold", "x", "--method", "diffseg")
    assert "--refine: not used by one-segment" in message("bsds", root, "--refine", "snap")
    assert "--engine: not used by one-segment" in message("bsds", root, "--engine", tmp_path / "none.onnx")


def test_masks_in_unusual_files_are_what_is_stored(tmp_path):
    import PIL.Image

    frame, mask = drawn.scene(1)
    truth = np.unique(mask, return_inverse=True)[1].reshape(mask.shape)
    root = tmp_path / "mine"
    for name in ("array", "upper", "four", "binary", "turned"):
        drawn.save(root / f"images/{name}.png", frame)
    drawn.save(root / "masks/upper.png", mask)
    np.save(root / "masks/array.npy", mask - 1)
    (root / "masks/upper.png").rename(root / "masks/upper.PNG")
    drawn.save_grey(root / "masks/four.png", mask, bits=4)
    np.save(root / "masks/binary.npy", mask > 1)
    # A photograph that a viewer turns, and a mask of its pixels as stored.
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    (root / "images/turned.png").unlink()
    PIL.Image.fromarray(frame[..., ::-1]).save(root / "images/turned.jpg", exif=exif, quality=100)
    drawn.save(root / "masks/turned.png", mask)
    data = open_dataset("folder", root)
    found = {sample.name: data.load(sample) for sample in data.samples}
    expected = {"array": truth - 1, "binary": mask > 1} | dict.fromkeys(("upper", "four", "turned"), truth)
    for name, one in expected.items():
        assert np.array_equal(found[name][1][0], one), name
    assert np.abs(found["turned"][0].astype(int) - frame).mean() < 5
    names = [str(value) for value in range(16)]
    (tmp_path / "map.json").write_text(json.dumps({"classes": names, "labels": {name: int(name) for name in names}}))
    (stored,) = read_truths(root / "masks/four.png", read_protocol(tmp_path / "map.json"))
    assert np.array_equal(stored, mask)
    np.savez(tmp_path / "x.npz", mask)
    for content in (b"", (tmp_path / "x.npz").read_bytes()):
        (root / "masks/array.npy").write_bytes(content)
        assert "array.npy: " in run(tmp_path, "folder", root, "--method", "one-segment")[1]


@pytest.mark.parametrize(
    "content",
    [
        {"classes": ["a", "b"]},
        {"classes": "road", "labels": {"0": 0}},
        {"crop": "512"},
        {"crop": 0},
        {"replace_threshold": [1]},
        {"published": [{"miou": 1}]},
    ],
)
def test_class_maps_that_are_none(content, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps(content))
    with pytest.raises(DiffSegError, match=r"not a valid class map"):
        read_protocol(tmp_path / "map.json")


def test_runs_resume_and_give_the_same_figures_in_any_number_of_processes(tmp_path, monkeypatch):
    from tools.evaluate import runner

    monkeypatch.setattr(runner, "code_digest", lambda: b"")  # the code may be under way while tests run
    root = drawn.bsds(tmp_path / "bsds")
    words = ("bsds", root, "--method", "diffseg", "--method", "kmeans-lab")
    first = figures(tmp_path, *words, pictures=1)
    files = ("results.json", "images.csv", "index.html")
    written = [(tmp_path / "out" / name).read_bytes() for name in files]
    again = tmp_path / "parallel"
    assert figures(again, *words, jobs=2, pictures=1) == first
    assert [(again / "out" / name).read_bytes() for name in files] == written

    measured = []
    real = runner.measure
    monkeypatch.setattr(
        runner,
        "measure",
        lambda job, evaluator, sample, wanted: (
            measured.append((sample.name, wanted)) or real(job, evaluator, sample, wanted)
        ),
    )
    assert figures(tmp_path, *words) == first and not measured
    # A line torn by a crash, and a mask that has changed since.
    store = next((tmp_path / "out/runs").glob("diffseg-*"))
    store.write_bytes(store.read_bytes()[:-20])
    assert figures(tmp_path, *words) == first and len(measured) == 1 and measured[0][1] == [0]
    measured.clear()
    mask = drawn.scene(20)[1]
    drawn.save_annotators(root / "BSDS500/data/groundTruth/test/0.mat", [mask > 1, mask > 2, mask])
    assert figures(tmp_path, *words) != first and measured == [("0", [0, 1])]
    measured.clear()
    more = drawn.bsds(tmp_path / "more", count=1)
    figures(tmp_path, "bsds", more, *words[2:])
    assert measured == [("0", [0, 1])]  # of the same name, elsewhere
    figures(tmp_path, *words)
    measured.clear()
    figures(tmp_path, *words, "--threshold", "0.3")
    assert [wanted for _, wanted in measured] == [[0]] * 3  # the other method is known


def test_sheet_and_csv(tmp_path):
    root = drawn.coco(tmp_path / "coco", COCO_IDS[:4])
    (found,) = figures(tmp_path, "coco", root, "--partial", "--method", "kmeans-lab", pictures=1)
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<img ") == 2 and page.count("data:image/jpeg") == 2 and "72.5" in page and "(published)" in page
    rows = list(csv.DictReader((tmp_path / "out/images.csv").open()))
    assert [row["image"] for row in rows] == list(COCO_IDS[:4])
    assert np.mean([float(row["covering"]) for row in rows]) == pytest.approx(found["covering"], abs=1e-12)
    worst, best = page.index("<h3>Worst"), page.index("<h3>Best")
    order = sorted(rows, key=lambda row: float(row["miou"]))
    assert order[0]["image"] in page[worst:best] and order[-1]["image"] in page[best:]

"""The evaluation as a whole, on small drawn data sets in the layouts of the official downloads."""

import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from runtime import DiffSegError, Segmenter
from runtime.engine.registry import EMBEDDED, open_engine
from runtime.merge.segment import segment_attention
from runtime.pyramid.config import MergeConfig
from tests.tools.evaluate import drawn
from tests.tools.evaluate.running import figures, run
from tests.tools.evaluate.test_datasets import nearest
from tools.evaluate.datasets import open_dataset, resize_bilinear
from tools.evaluate.masks import PROTOCOLS, Protocol, shipped_protocol
from tools.evaluate.variants import Wish, settle

COCO_IDS = shipped_protocol("coco-stuff-27").images


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return drawn.coco(tmp_path_factory.mktemp("coco"), COCO_IDS[:4])


@pytest.mark.parametrize(
    "thresholds",
    [
        pytest.param((0.05, 0.08), id="more segments than classes"),
        pytest.param((0.3, 0.3), id="fewer", marks=pytest.mark.slow),
    ],
)
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
        classes = np.array([class_map.get(str(value), -2) for value in range(256)])  # -2: in no class
        truth = classes[nearest(fine, 512)]
        assert truth.min() >= -1
        # Halves may round either way, and a level of one pixel may move a border: this step is held to its own test.
        network = resize_bilinear(frame, 256, 256)
        pyramid = [maps[0] for maps in engine.infer(network[None])]
        labels = segment_attention(pyramid, config, size=(512, 512))
        columns = max(27, labels.max() + 1)
        histogram = np.zeros((27, columns), np.int64)
        np.add.at(histogram, (truth[truth >= 0], labels[truth >= 0]), 1)
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


def test_cityscapes_takes_the_papers_threshold_for_stable_diffusion_alone(tmp_path):
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


def test_defaults_are_those_of_the_paper_or_of_the_product():
    tiny = open_engine(EMBEDDED, "cpu", threads=1).spec
    diffusion = replace(tiny, auto=False, thresholds=(1.1,) * 3)
    classes, regions = Protocol("some", ("cat", "dog"), crop=512), Protocol("others", ("cat", "dog"))
    for spec, protocol, wish, wanted in (
        (diffusion, classes, Wish(), (None, None)),
        (diffusion, regions, Wish(), (None, "unlike")),
        (tiny, regions, Wish(), (True, "unlike")),
        (tiny, regions, Wish(threshold="0.5", pieces="keep"), (None, None)),
        (tiny, regions, Wish(iterations=2), (None, "unlike")),
        (tiny, regions, Wish(similarity="js"), (None, "unlike")),
        (tiny, regions, Wish(solver="kcut"), (None, "unlike")),
        (tiny, classes, Wish(pieces="split"), (True, "split")),
    ):
        variant = settle("diffseg", "e", spec, protocol, wish)
        assert (variant.auto, variant.pieces) == wanted


@pytest.mark.parametrize(
    ("words", "options"),
    [
        pytest.param((), {}, id="plain"),
        pytest.param(
            ("--refine", "kmeans,snap", "--min-area", "0.01", "--pieces", "split"),
            {"refine": "kmeans,snap", "min_area": 0.01, "pieces": "split"},
            id="refined",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--threshold", "auto", "--refine", "snap"),
            {"thresholds": "auto", "refine": "snap"},
            id="auto",
            marks=pytest.mark.slow,
        ),
    ],
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


@pytest.mark.slow
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


def test_solvers_are_variants():
    spec = open_engine(EMBEDDED, "cpu", threads=1).spec
    protocol = Protocol("folder")
    cut = settle("diffseg", "e", spec, protocol, Wish(solver="ncut", tau=0.3, alpha=4.0, refine="snap"))
    assert (cut.solver, cut.tau, cut.alpha, cut.refine) == ("ncut", 0.3, 4.0, "snap")
    assert settle("diffseg", "e", spec, protocol, Wish(solver="merge")).solver is None
    for wish, words in (
        (Wish(tau=0.3), "tau: belongs to ncut, found the solver 'merge'"),
        (Wish(solver="crf"), "solver: expected 'merge', 'kmeans', 'ncut' or 'kcut', found 'crf'"),
        (Wish(solver="ncut", threshold="auto"), "--threshold auto: expected the solver merge, found ncut"),
        (Wish(solver="kcut", similarity="js"), "--similarity js: expected no --threshold auto and the solver merge"),
        (Wish(refine="magic"), "refine: expected none, or one or more of"),
    ):
        with pytest.raises(DiffSegError, match=words):
            settle("diffseg", "e", spec, protocol, wish)
    with pytest.raises(DiffSegError, match=r"expected the head attention for .*a solver other than merge"):
        settle("diffseg", "e", replace(spec, head="labels"), protocol, Wish(solver="ncut"))
    features = replace(spec, head="features", solver="ncut")
    assert settle("diffseg", "e", features, protocol, Wish(tau=0.3)).solver == "ncut"
    for wish, method, words in (
        (Wish(solver="merge"), "diffseg", "the solver merge"),
        (Wish(threshold="0.5", grid=8), "diffseg", "--threshold and --grid"),
        (Wish(), "kmeans-c", "kmeans-c"),
    ):
        with pytest.raises(DiffSegError, match=f"head features, which gives no maps; .* head attention for {words};"):
            settle(method, "e", features, protocol, wish)


@pytest.mark.slow
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


@pytest.mark.slow
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

"""The labels head: held to the authors' labels and to the merge core, alone and inside an engine."""

import warnings
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx_ir.passes import common
from typer.testing import CliRunner

from export.__main__ import app
from export.check.labels import LabelsCheck, differing_when_matched
from export.check.maps import random_frame
from export.graph.labels import LabelsHead
from export.graph.labels_merge import first_come
from export.heads.registry import load_head
from runtime import DiffSegError, Segmenter
from runtime.engine.registry import EMBEDDED, open_engine
from runtime.engine.spec import EngineSpec, Level, sidecar_path
from runtime.merge.segment import segment_attention
from runtime.pyramid.config import MergeConfig
from tests.conftest import ROOT
from tests.runtime.clips import StandIn

BOUND = 1e-3
NOTHING = -1.0  # a threshold at which an iteration merges nothing, so that one graph serves fewer iterations


class Alone(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, thresholds, *pyramid):
        return self.head(pyramid, thresholds)


def to_session(module, arguments, path, dynamic_shapes=None):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, arguments, dynamo=True, opset_version=21, dynamic_shapes=dynamic_shapes, verbose=False
        )
    common.InlinePass()(program.model)
    program.save(path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def export_head(path, levels, size, iterations, *, dynamic=False, **options):
    """The head alone in ONNX Runtime: (thresholds, *pyramid) → labels, segments."""
    pyramid = [
        torch.ones(2 if dynamic else 1, level.height * level.width, level.height * level.width) for level in levels
    ]
    first = {0: torch.export.Dim("batch", min=1)}
    shapes = (None, (first,) * len(pyramid)) if dynamic else None
    head = LabelsHead(levels, size, **options)
    return to_session(Alone(head), (torch.ones(iterations), *pyramid), path, shapes)


def random_pyramid(levels, batch, seed=0, parts=7):
    """Maps of random features that are constant on a few regions and vary a little within them."""
    rng = np.random.default_rng(seed)
    pyramid = [[] for _ in levels]
    for _ in range(batch):
        seeds, colours = rng.random((parts, 2)), rng.normal(size=(parts, 8)) * 2
        for level, maps in zip(levels, pyramid, strict=True):
            ys, xs = np.mgrid[: level.height, : level.width]
            points = np.stack(((ys + 0.5) / level.height, (xs + 0.5) / level.width), -1).reshape(-1, 1, 2)
            nearest = ((points - seeds) ** 2).sum(-1).argmin(1)
            features = colours[nearest] + rng.normal(size=(len(nearest), 8)) * 0.1
            logits = -((features[:, None] - features) ** 2).sum(-1) / 2
            maps.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    return [np.array(maps, np.float32) for maps in pyramid]


def core(pyramid, levels, size, thresholds, grid, weights="proportional"):
    return segment_attention(
        pyramid,
        MergeConfig(tuple(thresholds), grid, weights),
        size=size,
        grids=[(level.height, level.width) for level in levels],
        layers=[level.layers for level in levels],
    )


def reference_pyramid(vectors):
    pyramid = []
    for side in (64, 32, 16, 8):
        mean = 0
        for q in vectors[f"q{side}"].astype(np.float64):
            half = (q**2).sum(1) / 2
            logits = q @ q.T - half[:, None] - half
            weights = np.exp(logits - logits.max(1, keepdims=True))
            mean = mean + weights / weights.sum(1, keepdims=True) / len(vectors[f"q{side}"])
        pyramid.append(mean.astype(np.float32)[None])
    return pyramid


@pytest.fixture(scope="module")
def reference_head(tmp_path_factory):
    levels = [Level(side, side, 1) for side in (64, 32, 16, 8)]
    return export_head(tmp_path_factory.mktemp("head") / "h.onnx", levels, (512, 512), 4)


@pytest.mark.parametrize("number", range(3))
def test_the_authors_labels(reference_head, number):
    with np.load(ROOT / "tests" / "data" / f"reference_{number}.npz") as vectors:
        pyramid, thresholds, expected = reference_pyramid(vectors), vectors["thresholds"], vectors["labels"]
        assert int(vectors["grid"]) == 16
    padded = np.concatenate((np.atleast_1d(thresholds), [NOTHING] * 4)).astype(np.float32)[:4]
    labels, segments = reference_head(padded, *pyramid)
    assert labels.dtype == np.uint8 and labels.shape == (1, 512, 512) and segments.dtype == np.int32
    assert (labels[0] != expected).mean() <= BOUND
    assert segments[0] > expected.max() >= 4


# Neither square, nor divided by the tile or by the coarse sides; anchors no multiple of a chunk; one level left out.
LEVELS = [Level(28, 20, 3), Level(14, 10, 2), Level(9, 7, 1), Level(3, 2, 1)]
SIZE = (224, 160)
WEIGHTS = (3.0, 2.0, 1.0, 0.0)


@pytest.fixture(scope="module")
def odd_head(tmp_path_factory):
    path = tmp_path_factory.mktemp("head") / "h.onnx"
    return export_head(path, LEVELS, SIZE, 2, dynamic=True, grid=9, weights=WEIGHTS)


@pytest.mark.parametrize("batch", [1, 3])
def test_odd_shapes_weights_and_batch(odd_head, batch):
    pyramid = random_pyramid(LEVELS, batch)
    for thresholds in ((0.2, 0.2), (0.02, 0.3), (1.5, 0.8)):
        labels, segments = odd_head(np.float32(thresholds), *pyramid)
        expected = core(pyramid, LEVELS, SIZE, thresholds, 9, WEIGHTS)
        assert labels.shape == (batch, *SIZE) and segments.shape == (batch,)
        assert (labels != expected).mean() <= BOUND
        assert (segments > expected.max((1, 2))).all()
    assert expected.max() >= 1


def test_degenerate_maps(odd_head):
    sides = [level.height * level.width for level in LEVELS]
    uniform = [np.full((2, n, n), 1 / n, np.float32) for n in sides]
    labels, segments = odd_head(np.float32((0.1, 0.1)), *uniform)
    assert not labels.any() and segments.tolist() == [1, 1]
    one_hot = [np.broadcast_to(np.eye(n, dtype=np.float32), (2, n, n)) for n in sides]
    for thresholds in ((1e-6, 1e-6), (1.0, 1.0), (30.0, 30.0)):
        labels, segments = odd_head(np.float32(thresholds), *one_hot)
        assert (labels != core(one_hot, LEVELS, SIZE, thresholds, 9, WEIGHTS)).mean() <= BOUND
    # The merge core refuses these; a graph cannot, but gives labels in range.
    labels, segments = odd_head(np.float32((0.1, 0.1)), *(np.zeros_like(maps) for maps in uniform))
    assert (labels < segments[:, None, None]).all()


@pytest.mark.slow
def test_more_anchors_than_a_byte_counts(tmp_path):
    levels = [Level(18, 24, 1)]
    head = export_head(tmp_path / "h.onnx", levels, (72, 96), 1, grid=17)
    pyramid = random_pyramid(levels, 1)
    for threshold in (1e-7, 0.3):
        labels, segments = head(np.float32([threshold]), *pyramid)
        assert labels.dtype == np.int32 and segments[0] == 17 * 17
        assert (labels != core(pyramid, levels, (72, 96), [threshold], 17)).mean() <= BOUND


@pytest.mark.slow
def test_greedy_pass_on_a_chain_of_256(tmp_path):
    """Each is near the next alone: every other one is kept, and the last is known only after 255 rounds."""

    class Greedy(torch.nn.Module):
        def forward(self, near, valid):
            return first_come(near > 0, valid > 0)

    run = to_session(Greedy(), (torch.eye(256), torch.ones(256)), tmp_path / "g.onnx")

    def reference(near, valid):
        keep = np.zeros(256, bool)
        for index in np.flatnonzero(valid):
            keep[index] = not (near[:index, index] * keep[:index]).any()
        return keep

    chain = np.eye(256, dtype=np.float32) + np.eye(256, k=1, dtype=np.float32) + np.eye(256, k=-1, dtype=np.float32)
    everyone = np.ones(256, np.float32)
    (keep,) = run(chain, everyone)
    assert np.array_equal(keep, np.arange(256) % 2 == 0)
    rng = np.random.default_rng(0)
    for density in (0.002, 0.02, 0.5):
        near = np.maximum(np.eye(256), np.triu(rng.random((256, 256)) < density)).astype(np.float32)
        valid = (rng.random(256) < 0.7).astype(np.float32)
        near *= valid[:, None] * valid
        assert np.array_equal(run(near, valid)[0], reference(near, valid))


def test_options_that_do_not_fit():
    with pytest.raises(ValueError, match="grid: expected 2 to 20 anchors"):
        LabelsHead(LEVELS, SIZE, grid=21)
    with pytest.raises(ValueError, match="weights: expected 4 numbers"):
        LabelsHead(LEVELS, SIZE, weights=(1.0, 2.0))


@pytest.mark.slow
def test_kcut_in_the_graph_equals_numpys(tmp_path):
    """Maps with and without parts, and maps that are all the same; the merge alone gives other labels."""
    levels, size = [Level(12, 20, 2), Level(6, 10, 1)], (48, 80)
    head = export_head(tmp_path / "h.onnx", levels, size, 2, grid=6, solver="kcut")
    config = {"size": size, "grids": [(12, 20), (6, 10)], "layers": [2, 1]}
    moved = 0
    for seed in range(3):
        pyramid = random_pyramid(levels, 1, seed)
        for threshold in (0.05, 0.4):
            labels, segments = head(np.float32((threshold,) * 2), *pyramid)
            expected = segment_attention(pyramid, MergeConfig((threshold,) * 2, 6, solver="kcut"), **config)
            assert (labels != expected).mean() <= BOUND and segments[0] == expected.max() + 1 > 4
            moved += (core(pyramid, levels, size, (threshold,) * 2, 6) != expected).any()
    assert moved > 3
    rng = np.random.default_rng(0)
    noise = [rng.random((1, n, n), np.float32) + 0.5 for n in (240, 60)]
    for maps in (noise, [np.ones_like(level) for level in noise]):
        maps = [level / level.sum(-1, keepdims=True) for level in maps]
        labels, segments = head(np.float32((0.001, 0.001)), *maps)
        assert (labels < segments[0]).all() and segments[0] <= 36
    assert not labels.any() and segments[0] == 1


def test_the_solver_is_part_of_a_labels_graph():
    spec = replace(EngineSpec.from_json(sidecar_path(EMBEDDED).read_text(), "tiny"), head="labels", solver="kcut")
    assert load_head("labels").assemble(torch.nn.Identity(), spec).head.solver == "kcut"
    engine = StandIn()
    engine.spec = replace(engine.spec, solver="kcut")
    assert Segmenter(engine).config.solver == "kcut"
    for config, message in (
        (
            MergeConfig((1.0,)),
            r"solver: expected kcut, which is in this engine's graph, found merge; .*--head attention",
        ),
        (MergeConfig((1.0,), solver="ncut"), r"solver: expected kcut, .* found ncut; .*--head attention"),
        (MergeConfig((1.0,), solver="kcut", alpha=3.0), r"alpha: expected none, .* found 3; leave it out"),
    ):
        with pytest.raises(DiffSegError, match=message):
            Segmenter(engine, config)
    with pytest.raises(DiffSegError, match="thresholds 'auto': expected the solver merge, found kcut"):
        Segmenter(engine, auto=True)


@pytest.fixture(scope="module")
def labels_engine(small_pipeline, tmp_path_factory):
    """The labels engine of `small_pipeline`, through the command line and its check."""
    path = tmp_path_factory.mktemp("engines") / "labels.onnx"
    options = "--head labels --size 128x192 --batch dynamic --threshold 0.8,0.75 --grid 12 --weights per-tensor"
    result = CliRunner().invoke(app, [str(small_pipeline), "--output", str(path), *options.split()])
    assert result.exit_code == 0, result.stderr
    assert "of pixels differ (bound 0.1%)" in result.stderr and "too few" not in result.stderr
    return path


def test_engine_says_what_it_is(labels_engine):
    engine = open_engine(labels_engine, "cpu")
    spec = engine.spec
    assert (spec.head, spec.grid, spec.weights, spec.thresholds) == ("labels", 12, "per-tensor", (0.8, 0.75))
    assert spec.outputs == ("labels", "segments")
    assert EngineSpec.from_json(sidecar_path(labels_engine).read_text(), "sidecar") == spec
    assert [(i.name, i.type, i.shape[1:]) for i in engine.session.get_inputs()] == [
        ("frame", "tensor(uint8)", [128, 192, 3]),
        ("thresholds", "tensor(float)", []),
    ]


def test_both_heads_agree(labels_engine, small_engine):
    labels, attention = open_engine(labels_engine, "cpu"), open_engine(small_engine, "cpu")
    frames = np.stack([random_frame(128, 192, seed) for seed in range(3)])
    levels = attention.spec.levels
    for thresholds in (None, (0.8, 1.2)):
        found, segments = labels.infer(frames, thresholds)
        expected = core(
            attention.infer(frames), levels, (128, 192), thresholds or labels.spec.thresholds, 12, "per-tensor"
        )
        assert found.dtype == np.uint8 and (found != expected).mean() <= BOUND
        assert (segments > expected.max((1, 2))).all()


def test_segmenter_runs_either_head(labels_engine, small_engine):
    frame = random_frame(200, 301, 5)
    for thresholds in (None, 0.9):
        ours = Segmenter.open(labels_engine, "cpu", thresholds=thresholds, pieces="keep")(frame)
        theirs = Segmenter.open(
            small_engine, "cpu", thresholds=thresholds or (0.8, 0.75), grid=12, weights="per-tensor", pieces="keep"
        )(frame)
        assert (ours.labels != theirs.labels).mean() <= BOUND and ours.count == theirs.count > 4
        assert set(ours.milliseconds) == set(theirs.milliseconds) and ours.proposals is None
    clone = Segmenter.open(labels_engine, "cpu").clone()
    assert clone(frame).labels.shape == (200, 301)


def test_the_readmes_program_gives_the_runtimes_labels(labels_engine, tmp_path):
    import cv2

    text = (ROOT / "export" / "README.md").read_text()
    program = text.split("```python\nimport cv2")[1].split("```")[0]
    for written, here in (("engines/sd15_labels.onnx", labels_engine), ("photo.jpg", tmp_path / "photo.png")):
        assert written in program
        program = program.replace(written, str(here))
    for size in ((200, 301), (100, 300), (128, 192)):  # larger; one side smaller; the engine's own
        frame = random_frame(*size, 5)
        cv2.imwrite(str(tmp_path / "photo.png"), frame)
        names = {}
        exec("import cv2" + program.replace("[1.1, 1.1, 1.1]", "[0.8, 0.75]"), names)
        renumbered = np.unique(names["labels"], return_inverse=True)[1].reshape(size)
        assert np.array_equal(renumbered, Segmenter.open(labels_engine, "cpu", pieces="keep")(frame).labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"grid": 8},
            r"grid: expected 12, .* found 8; .* --head labels --size 128x192 --batch dynamic --grid 8 --output",
        ),
        ({"weights": "proportional"}, r"weights: expected per-tensor, .*--weights proportional"),
        ({"weights": (1, 0, 0, 0)}, r"weights: expected per-tensor, .* found 1,0,0,0; .*--weights 1,0,0,0"),
        ({"iterations": 3}, r"iterations: expected 2, .* found 3; .*--threshold 0.8,0.75,0.75"),
        ({"thresholds": (0.5,)}, r"iterations: expected 2, .*--threshold 0.5 "),
        ({"refine": "kmeans"}, r"solver: expected merge.* found kmeans; .*--head attention"),
    ],
)
def test_what_is_part_of_the_graph_is_refused(labels_engine, options, message):
    with pytest.raises(DiffSegError, match=message):
        Segmenter.open(labels_engine, "cpu", **options)


def test_refusals_at_the_call(labels_engine, small_engine):
    with pytest.raises(DiffSegError, match=r"details: .*--head attention"):
        Segmenter.open(labels_engine, "cpu")(random_frame(128, 192), details=True)
    frames = random_frame(128, 192)[None]
    for thresholds in ((0.5,), (0.5, -1.0), (0.5, float("nan"))):
        with pytest.raises(DiffSegError, match="thresholds: expected 2 finite numbers above 0"):
            open_engine(labels_engine, "cpu").infer(frames, thresholds)
    with pytest.raises(DiffSegError, match="takes no thresholds"):
        open_engine(small_engine, "cpu").infer(frames, (0.5, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head", "tail"], "--head: expected attention, labels, features, found 'tail'"),
        (["--head", "labels", "--solver", "ncut"], "--solver: expected merge or kcut with --head labels, found 'ncut'"),
        (["--solver", "crf"], "--solver: expected merge or kmeans or ncut or kcut with --head attention, found 'crf'"),
        (["--head", "labels", "--grid", "1"], "--grid: expected at least 2"),
        (["--head", "labels", "--grid", "17"], "grid: expected 2 to 16 anchors"),
        (["--weights", "heavy"], "--weights: expected"),
        (["--weights", "1,2"], "error: --weights: expected 4 numbers"),
    ],
)
def test_bad_export_options(small_pipeline, tmp_path, options, message):
    arguments = [str(small_pipeline), "--output", str(tmp_path / "x"), "--size", "128x192", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code in (1, 2) and message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_matching_forgives_numbers_but_not_borders():
    labels = np.array([[[0, 0, 1, 1], [2, 2, 3, 3]]])
    assert differing_when_matched(3 - labels, labels) == 0
    assert differing_when_matched(np.zeros_like(labels), labels) == 0.75
    assert differing_when_matched(labels, np.zeros_like(labels)) == 0.75


def test_check_says_when_it_says_nothing():
    assert "too few" in str(LabelsCheck("labels", 0.0, 1e-3, 2, 0.1))
    assert not LabelsCheck("labels", 0.01, 1e-3, 9, 0.1).passed

"""An engine that gives features: they are cut, and what needs maps is refused in one line."""

from itertools import pairwise

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from runtime import DiffSegError, Segmenter
from runtime.engine.spec import EngineSpec
from runtime.merge import normalized_cut
from runtime.segment import app
from tests.runtime.clips import write_clip
from tests.runtime.colours import write_engine

GRID, SIZE = (8, 12), (64, 96)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Its features are the mean colours of 8×8 pixels."""
    return write_engine(tmp_path_factory.mktemp("features") / "colours.onnx", GRID)


def halves(shift=0):
    """Red on the left, blue and green on the right, uint8 [64, 96, 3] BGR."""
    frame = np.zeros((*SIZE, 3), np.uint8)
    frame[:, : 48 + shift, 2] = 200
    frame[:32, 48 + shift :, 0] = 200
    frame[32:, 48 + shift :, 1] = 200
    return frame


def test_features_are_cut(engine):
    segmenter = Segmenter.open(engine, "cpu", backend="onnxruntime")
    assert segmenter.config.solver == "ncut"
    labels = segmenter(halves()).labels
    features = halves().reshape(8, 8, 12, 8, 3).mean((1, 3), dtype=np.float32).reshape(-1, 3)
    assert np.array_equal(labels, normalized_cut(features, GRID, size=SIZE)) and labels.max() == 2
    assert len(np.unique(labels[:, :40])) == len(np.unique(labels[:24, 56:])) == 1
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    counts = [Segmenter.open(engine, "cpu", solver="ncut", tau=tau, alpha=2)(noise).count for tau in (1e-6, 1.5)]
    assert counts[0] == 1 and counts[1] > 10
    assert np.array_equal(Segmenter.open(engine, "cpu", refine="ncut")(halves()).labels, labels)


def test_batches_and_photographs(engine):
    segmenter = Segmenter.open(engine, "cpu", backend="onnxruntime")
    frames = [halves(shift) for shift in (0, 8, 16)]
    alone = [segmenter(frame).labels for frame in frames]
    together = segmenter.stages.network(np.stack(frames), 3)
    for output, expected in zip(together, alone, strict=True):
        assert np.array_equal(segmenter.stages.merge(output).raw, expected)
    for result, expected in zip(segmenter.map(frames), alone, strict=True):
        assert np.array_equal(result.labels, expected)


def test_a_flat_frame_is_one_segment_and_a_nan_is_one_line(engine, monkeypatch):
    segmenter = Segmenter.open(engine, "cpu", backend="onnxruntime")
    for level in (0, 77):
        assert segmenter(np.full((*SIZE, 3), level, np.uint8)).count == 1
    broken = np.full((1, 96, 3), np.nan, np.float32)
    monkeypatch.setattr(segmenter.engine, "_infer", lambda inputs: [broken])
    with pytest.raises(DiffSegError, match="features: expected finite numbers, found a NaN or an infinity"):
        segmenter(halves())


NO_MAPS = "an engine with the head features gives no maps; expected the head attention, found features"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "merge"}, "solver: expected ncut, which cuts this engine's features, found merge"),
        ({"solver": "kcut"}, "found kcut"),
        ({"refine": "kmeans"}, "found kmeans"),
        ({"thresholds": "auto"}, f"thresholds 'auto': {NO_MAPS}"),
        ({"thresholds": 0.4}, f"thresholds: {NO_MAPS}"),
        ({"iterations": 2}, f"thresholds: {NO_MAPS}"),
        ({"grid": 4}, f"grid: {NO_MAPS}"),
        ({"weights": "per-tensor"}, f"weights: {NO_MAPS}"),
        ({"tau": 2.5}, "tau: expected a finite number above 0 and at most 2, found 2.5"),
        ({"alpha": -1.0}, "alpha: expected a finite number above 0 and at most 1000, found -1.0"),
    ],
)
def test_options_of_a_merge_are_refused(engine, options, message):
    with pytest.raises(DiffSegError) as error:
        Segmenter.open(engine, "cpu", backend="onnxruntime", **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_needs_maps_is_refused(engine):
    segmenter = Segmenter.open(engine, "cpu", backend="onnxruntime")
    calls = {
        "hierarchy": lambda: segmenter.hierarchy(halves()),
        "attend": lambda: segmenter.attend(halves()),
        "details": lambda: segmenter(halves(), details=True),
        "tiles": lambda: segmenter(halves(), tiles="auto"),
        "warm start": lambda: next(segmenter.stream([halves()], warm_start=True)),
    }
    for what, call in calls.items():
        with pytest.raises(DiffSegError, match=f"^{what}: {NO_MAPS}"):
            call()
    assert segmenter(halves(), proposals=True).proposals is None


@pytest.mark.slow
def test_a_clip_keeps_its_identities(engine, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", count=4)
    output = tmp_path / "out"
    options = [
        "--engine",
        engine,
        "--output",
        output,
        "--save",
        "labels",
        "--device",
        "cpu",
        "--backend",
        "onnxruntime",
    ]
    result = CliRunner().invoke(app, [str(word) for word in (clip, *options)])
    assert result.exit_code == 0, result.stderr
    assert len(list((output / "clip_labels").iterdir())) == 4
    segmenter = Segmenter.open(engine, "cpu", backend="onnxruntime")
    followed = [result.labels for result in segmenter.stream([halves(shift) for shift in (0, 1, 2, 3)])]
    assert all((one == other).mean() > 0.9 for one, other in pairwise(followed))
    for words in (["--hierarchy", "0.5,1"], ["--tiles", "auto"], ["--threshold", "auto"]):
        result = CliRunner().invoke(app, [str(word) for word in (clip, *options, *words)])
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "gives no maps" in result.stderr


def test_a_description_without_channels_is_refused(engine):
    text = onnx.load(engine).metadata_props[0].value.replace('"channels": 3', '"channels": null')
    with pytest.raises(DiffSegError, match="channels: expected a number, which the head features needs, found none"):
        EngineSpec.from_json(text, "x")

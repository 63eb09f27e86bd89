"""With `flip` the network also sees the mirror image, and a frame and its mirror image get the same segments."""

import numpy as np
import pytest
from skimage import data
from typer.testing import CliRunner

from runtime import DiffSegError, Segmenter
from runtime.engine.backends.onnxruntime import OnnxRuntimeEngine
from runtime.merge import aggregate_attention
from runtime.pyramid.mirror import looks_right, mirror_keys, mirror_output
from runtime.segment import app
from runtime.stream.continuity import Continuity
from runtime.stream.frame import Job
from runtime.stream.job import Stream
from tests.runtime.colours import write_engine

pytestmark = pytest.mark.usefixtures("embedded_stays_open")

CAT = data.chelsea()[:256, 100:356, ::-1].copy()


SEEN = {}


@pytest.fixture(autouse=True)
def _seen_once(monkeypatch):
    """The network sees each picture once: the tests are of what follows."""
    infer = OnnxRuntimeEngine._infer

    def remembered(engine, inputs):
        key = inputs["frame"].tobytes()
        if key not in SEEN:
            SEEN[key] = infer(engine, inputs)
        return SEEN[key]

    monkeypatch.setattr(OnnxRuntimeEngine, "_infer", remembered)


def open_flipped(**options):
    return Segmenter.open(device="cpu", backend="onnxruntime", flip=True, **options)


@pytest.fixture
def frames():
    """A frame and its mirror image: the maps of the first one are not turned, those of the second one are."""
    both = [CAT, np.ascontiguousarray(CAT[:, ::-1])]
    turned = []
    with open_flipped() as segmenter:
        for frame in both:
            turned.append(looks_right(segmenter.engine.infer(frame[None])[0][0], (32, 32)))
    assert sorted(turned) == [False, True]
    return both if turned[1] else both[::-1]


def mirrored(labels):
    return labels[:, ::-1]


def test_mirrored_maps():
    draw = np.random.default_rng(0)
    level, words = draw.random((2, 15, 15)), draw.random((2, 4, 3, 5))
    found, names = mirror_output([level, words], [(3, 5)])
    for query in np.ndindex(3, 5):
        there = 5 * query[0] + 4 - query[1]
        row = level[:, 5 * query[0] + query[1]].reshape(2, 3, 5)
        assert np.array_equal(found[:, there].reshape(2, 3, 5), row[..., ::-1])
    assert np.array_equal(names, words[..., ::-1])
    assert np.array_equal(mirror_keys(level, (3, 5)).reshape(2, 15, 3, 5), level.reshape(2, 15, 3, 5)[..., ::-1])
    whole = level[0] / level[0].sum(axis=1, keepdims=True)
    assert looks_right(whole, (3, 5)) != looks_right(mirror_output([whole], [(3, 5)])[0], (3, 5))
    assert not looks_right(np.ones((15, 15)), (3, 5))


def test_maps_are_the_means_of_both(frames):
    frame, image = frames
    plain = Segmenter.open(device="cpu", backend="onnxruntime").engine
    own, other = plain.infer(frame[None]), plain.infer(image[None])
    shapes = [(level.height, level.width) for level in plain.spec.levels]
    found = open_flipped().engine.infer(frame[None])
    for level, one, two in zip(found, own, mirror_output(other, shapes), strict=True):
        assert level.dtype == one.dtype and np.allclose(level, (one + two) / 2, atol=1e-7)
        assert not np.allclose(one, two, atol=1e-4)
    again = mirror_output(open_flipped().engine.infer(image[None]), shapes)
    assert all(np.array_equal(one, two) for one, two in zip(found, again, strict=True))


@pytest.mark.parametrize("options", [{}, {"thresholds": "auto"}, {"solver": "kcut"}, {"refine": "kmeans"}])
def test_a_frame_and_its_mirror_image_get_the_same_segments(options, frames):
    segmenter = open_flipped(**options)
    one, other = (segmenter(frame, proposals=True) for frame in frames)
    assert one.count > 2 and np.array_equal(one.labels, mirrored(other.labels))
    assert np.array_equal(one.proposals, other.proposals[..., ::-1])


def test_details_and_levels_are_the_right_way_round(frames):
    segmenter = open_flipped(thresholds=0.5, pieces="keep")
    for frame in frames:
        result = segmenter(frame, details=True)
        wanted = aggregate_attention(segmenter.attend(frame).pyramid)
        assert np.allclose(result.attention.reshape(wanted.shape), wanted, atol=1e-6)
        assert np.array_equal(segmenter.hierarchy(frame, (0.5, 0.8)).finest, segmenter(frame).labels)
    one, other = (segmenter.hierarchy(frame, (0.3, 0.8)) for frame in frames)
    assert np.array_equal(one.labels(1), mirrored(other.labels(1)))


def test_a_frame_that_was_attended_is_segmented_as_by_a_call(frames):
    segmenter = open_flipped()
    for frame in frames:
        attended = segmenter.attend(frame)
        assert np.array_equal(attended.labels(), segmenter(frame).labels)
        clicked = attended.at(40, 100)
        wanted = aggregate_attention(attended.pyramid)[100 // 8 * 32 + 40 // 8].reshape(32, 32)
        assert clicked.index == attended.labels()[100, 40]
        assert np.allclose(clicked.attention[4::8, 4::8], wanted, atol=0.3 * wanted.max())
        assert abs(clicked.attention[4::8, 4::8] - wanted).sum() < 0.3 < abs(wanted[:, ::-1] - wanted).sum()


def test_frames_of_a_clip_with_identities_are_never_turned(frames, monkeypatch):
    segmenter = open_flipped()
    stages = segmenter.stages
    assert not stages.tracked().clone().route.turns and stages.clone().route.turns
    (apart,) = segmenter.stream(frames[1:], temporal=False)
    assert np.array_equal(apart.labels, segmenter(frames[1]).labels)
    assert not np.array_equal(apart.labels, stages.tracked()(frames[1]).labels)
    monkeypatch.setattr("runtime.routes.host.looks_right", lambda *of: pytest.fail("it was asked which way round"))
    (tracked,) = segmenter.stream(frames[1:])
    jobs = [Job(frame=frames[1], number=0)]
    (job,) = Stream(stages, Continuity(stages)).pipeline(iter(jobs), writes=False)
    assert np.array_equal(job.result.labels, tracked.labels) and stages.route.turns


def test_a_warm_start_is_the_right_way_round(frames):
    route = open_flipped().stages.route
    seeds = [open_flipped()(frame, proposals=True).proposals for frame in frames]
    one, other = (
        route.merge(route.network(frame[None])[0], seeds=given).raw for frame, given in zip(frames, seeds, strict=True)
    )
    assert np.array_equal(one, mirrored(other))


def test_settings_name_it_only_where_it_is_on():
    assert open_flipped().stages.settings()["flip"] is True
    plain = Segmenter.open(device="cpu", backend="onnxruntime")
    assert "flip" not in plain.stages.settings() and not plain.stages.route.turns


def test_what_it_is_not_for_is_one_line(tmp_path):
    features = write_engine(tmp_path / "features.onnx", (8, 8))
    with pytest.raises(DiffSegError, match=r"^flip: an engine with the head features gives no maps; expected"):
        Segmenter.open(features, "cpu", flip=True)
    with pytest.raises(DiffSegError, match=r"^flip: expected True or False, found 'yes'"):
        Segmenter.open(device="cpu", flip="yes")
    result = CliRunner().invoke(app, [str(tmp_path), "--engine", str(features), "--flip"])
    assert result.exit_code == 2 and result.stderr.startswith("error: --flip: an engine with the head features gives")

"""Segmenter: from a frame of any size to labels of that size."""

from threading import Thread

import cv2
import numpy as np
import pytest
from skimage import data

from runtime import DiffSegError, Segmenter
from runtime.frames.resize import resize_frame
from runtime.merge.segment import segment_attention
from runtime.pyramid.config import MergeConfig
from tests.runtime.clips import StandIn

pytestmark = pytest.mark.usefixtures("embedded_stays_open")

CAT = data.chelsea()[..., ::-1].copy()


@pytest.fixture(scope="module")
def segmenter():
    """The paper's merge alone."""
    return Segmenter.open(device="cpu", backend="onnxruntime", thresholds=0.5, pieces="keep")


@pytest.fixture(scope="module")
def result(segmenter):
    return segmenter(CAT, details=True)


def test_labels_have_the_frames_size_and_no_gaps(result):
    assert result.labels.shape == CAT.shape[:2] and result.labels.dtype == np.int32
    assert result.count == result.labels.max() + 1 == len(np.unique(result.labels))
    assert 2 <= result.count <= 60
    assert set(result.milliseconds) == {"resize", "network", "merge", "labels", "total"}
    assert sum(v for k, v in result.milliseconds.items() if k != "total") == pytest.approx(
        result.milliseconds["total"], abs=0.01
    )


def test_it_says_what_it_is(segmenter):
    assert repr(segmenter) == "<Segmenter: tiny.onnx, backend onnxruntime, device cpu, 256x256>"
    own = Segmenter(StandIn())
    assert repr(own) == "<Segmenter: StandIn, backend of its own, device cpu, 32x32>"
    own.close()
    assert repr(own) == "<Segmenter: closed>"


def test_details(segmenter, result):
    finest = segmenter.engine.spec.levels[0]
    n = finest.height * finest.width
    assert result.proposals.shape == (result.count, finest.height, finest.width)
    assert result.attention.shape == (n, n)
    np.testing.assert_allclose(result.attention.sum(1), 1, atol=1e-3)
    np.testing.assert_allclose(result.proposals.sum((1, 2)), 1, atol=1e-3)
    plain = segmenter(CAT)
    assert plain.proposals is None and np.mean(plain.labels != result.labels) <= 1e-3
    # The proposal of a segment is the strongest one at the segment's own pixels.
    up = [cv2.resize(p, CAT.shape[1::-1]) for p in result.proposals]
    assert np.mean(np.argmax(up, axis=0) == result.labels) > 0.95


def test_segments(result):
    assert sum(segment.area for segment in result.segments) == result.labels.size
    for segment in result.segments:
        mask = result.mask(segment.index)
        assert mask.sum() == segment.area
        assert cv2.boundingRect(mask.astype(np.uint8)) == segment.box
    with pytest.raises(IndexError, match="expected a segment from 0"):
        result.mask(result.count)


def test_equals_engine_and_merge_core_by_hand(segmenter, result):
    spec = segmenter.engine.spec
    pyramid = segmenter.engine.infer(resize_frame(CAT, spec.height, spec.width)[None])
    config = MergeConfig(thresholds=segmenter.config.thresholds, grid=spec.grid)
    raw = segment_attention([m[0] for m in pyramid], config, size=(spec.height, spec.width))
    big = cv2.resize(raw, CAT.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    assert np.array_equal(np.unique(big, return_inverse=True)[1].reshape(big.shape), result.labels)


def test_options_change_the_result(result):
    everything = Segmenter.open(device="cpu", thresholds=1e6)(CAT)
    nothing = Segmenter.open(device="cpu", thresholds=1e-9, iterations=1)(CAT)
    assert everything.count == 1 and nothing.count > result.count
    engine = Segmenter.open(device="cpu").engine
    assert Segmenter.open(device="cpu", thresholds=0.5).config.thresholds == (0.5,) * len(engine.spec.thresholds)
    assert len(Segmenter.open(device="cpu", iterations=5).config.thresholds) == 5
    assert Segmenter.open(device="cpu", thresholds=(0.5, 0.4)).config.thresholds == (0.5, 0.4)
    assert Segmenter.open(device="cpu", grid=4).config.grid == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 1}, "grid: expected"),
        ({"grid": 33}, "expected a grid from 2 to 32"),
        ({"thresholds": -1.0}, "thresholds: expected"),
        ({"thresholds": float("nan")}, "thresholds: expected"),
        ({"iterations": 0}, "iterations: expected 1 to 100, found 0"),
        ({"thresholds": (1.0, 2.0), "iterations": 3}, "one for each of 3 iterations, found 2"),
        ({"refine": "snap2"}, "refine: expected"),
        ({"weights": (1.0, 2.0)}, "expected"),
        ({"device": "tpu"}, "expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, "expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda"}, "diffseg\\[gpu\\]"),
        ({"backend": "tflite"}, "expected onnxruntime, openvino"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DiffSegError, match=message):
        Segmenter.open(**({"device": "cpu"} | options))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        [[1]],
        None,
    ],
)
def test_bad_frames(segmenter, frame):
    with pytest.raises(DiffSegError, match="expected a frame"):
        segmenter(frame)


@pytest.mark.parametrize("shape", [(1, 1), (3, 20000), (20000, 3), (1, 700), (2000, 50)])
def test_odd_sizes(segmenter, shape):
    rng = np.random.default_rng(0)
    result = segmenter(rng.integers(0, 256, (*shape, 3), np.uint8))
    assert result.labels.shape == shape and result.count == len(np.unique(result.labels))


def test_frames_need_not_be_contiguous(segmenter, result):
    assert np.array_equal(segmenter(np.asfortranarray(CAT)).labels, result.labels)
    flipped = np.ascontiguousarray(CAT[:, ::-1])[:, ::-1]
    assert np.array_equal(segmenter(flipped).labels, result.labels)


def test_clone_works_in_another_thread(segmenter, result):
    found = []
    other = segmenter.clone()
    threads = [Thread(target=lambda s=s: found.append(s(CAT).labels)) for s in (segmenter, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.engine is not segmenter.engine
    assert all(np.array_equal(labels, result.labels) for labels in found) and len(found) == 2


def test_engine_that_is_not_square_with_dynamic_batch(small_engine):
    segmenter = Segmenter.open(small_engine, "cpu")
    assert segmenter.config.thresholds == (0.3, 0.2) and segmenter.config.grid == 16
    assert segmenter(CAT).labels.shape == CAT.shape[:2]
    with pytest.raises(DiffSegError, match="expected a grid from 2 to 16"):
        Segmenter.open(small_engine, "cpu", grid=17)
    with pytest.raises(DiffSegError, match=r"takes frames uint8 \[B, 128, 192, 3\], found uint8 \[1, 8, 8, 3\]"):
        segmenter.engine.infer(np.zeros((1, 8, 8, 3), np.uint8))


def test_resize_averages_what_shrinks_and_interpolates_what_grows():
    stripes = np.zeros((2, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize_frame(stripes, 8, 100).astype(int) - 127).max() <= 1
    step = np.zeros((1, 2, 3), np.uint8)
    step[:, 1] = 200
    assert len(np.unique(resize_frame(step, 4, 16))) > 5
    same = np.zeros((5, 6, 3), np.uint8)
    assert resize_frame(same, 5, 6) is same

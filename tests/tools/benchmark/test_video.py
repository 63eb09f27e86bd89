import cv2
import numpy as np
import pytest

from tools.benchmark.identities import FRAME_BY_FRAME, TEMPORAL, Truth, first_flow, flow_truth, kept_share, score
from tools.benchmark.video import missed
from tools.scenes.moving import draw_moving_scene

SIZE, COUNT = (96, 128), 13


@pytest.fixture(scope="module")
def scene():
    return draw_moving_scene(4, SIZE, split="test")


def test_motion_is_exact(scene):
    """The frame before, moved by the drawn motion, is the frame; to first order noise and interpolation remain."""
    for seed in range(3):
        other = draw_moving_scene(seed, SIZE, split="test")
        origins, seen = other.origins(9, 6)
        before, now = (cv2.blur(other.frame(time), (3, 3)).astype(float) for time in (6, 9))
        moved = cv2.remap(before, origins[..., 0], origins[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inner = cv2.erode(seen.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        assert np.abs(moved - now)[inner].mean() < 0.5 * np.abs(before - now)[inner].mean() + 2.0
    assert np.array_equal(scene.frame(3), scene.frame(3)) and not np.array_equal(scene.frame(3), scene.frame(4))


def test_the_drawn_masks_keep_everything_and_other_labels_do_not(scene):
    masks = [scene.mask(time) for time in range(COUNT)]
    steps = [scene.origins(time, time - 1) for time in range(1, COUNT)]
    truth = Truth(steps, [scene.origins(time, time - 10) for time in range(10, COUNT)], masks)
    row = score(masks, truth)
    assert row["kept"] > 0.999 and row["kept_long"] > 0.999 and row["covering"] == 1.0
    renumbered = [mask if time % 2 else mask.max() - mask for time, mask in enumerate(masks)]
    assert score(renumbered, truth)["kept"] < 0.5
    still = score([masks[0]] * COUNT, truth)
    assert still["kept"] < row["kept"] and still["covering"] < 1


def test_flow_and_drawn_motion_agree_where_the_flow_is_sure(scene):
    frames = list(scene.frames(3))
    labels = [scene.mask(time) for time in range(3)]
    origins, known = flow_truth(frames).steps[0]
    assert known.mean() > 0.3
    assert kept_share(labels[1], labels[0], origins, known) > 0.95
    carried = first_flow(labels[0], frames)
    assert (carried[2] == labels[2]).mean() > (labels[0] == labels[2]).mean() - 0.02


def test_what_falls_short_is_named():
    plain = {"kept": 0.8, "covering": 0.7, "segments": 5.0}
    good = {"kept": 0.96, "covering": 0.71, "segments": 5.5}
    assert missed({"scenes": {FRAME_BY_FRAME: plain, TEMPORAL: good}}) == []
    bad = missed({"scenes": {FRAME_BY_FRAME: plain, TEMPORAL: {"kept": 0.9, "covering": 0.6, "segments": 3.0}}})
    assert ["0.900" in bad[0], "covering" in bad[1], "3.0 segments" in bad[2]] == [True] * 3
    assert len(missed({"clips": {FRAME_BY_FRAME: {"kept": 0.8}, TEMPORAL: {"kept": 0.89}}})) == 1

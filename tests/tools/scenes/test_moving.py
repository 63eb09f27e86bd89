import cv2
import numpy as np

from tools.scenes.moving import draw_moving_scene

SIZE = (96, 128)


def test_motion_is_exact():
    """The frame before, moved by the drawn motion, is the frame; to first order noise and interpolation remain."""
    for seed in range(3):
        other = draw_moving_scene(seed, SIZE, split="test")
        origins, seen = other.origins(9, 6)
        before, now = (cv2.blur(other.frame(time), (3, 3)).astype(float) for time in (6, 9))
        moved = cv2.remap(before, origins[..., 0], origins[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inner = cv2.erode(seen.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        assert np.abs(moved - now)[inner].mean() < 0.5 * np.abs(before - now)[inner].mean() + 2.0
    scene = draw_moving_scene(4, SIZE, split="test")
    assert np.array_equal(scene.frame(3), scene.frame(3)) and not np.array_equal(scene.frame(3), scene.frame(4))

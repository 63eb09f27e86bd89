import numpy as np
import pytest

from runtime.engine.registry import EMBEDDED, open_engine
from runtime.segmenter import Segmenter
from tools.benchmark.identities import (
    FRAME_BY_FRAME,
    TEMPORAL,
    RememberingEngine,
    Truth,
    first_flow,
    flow_truth,
    kept_share,
    measure_clips,
    score,
)
from tools.scenes.moving import draw_moving_scene

SIZE, COUNT = (96, 128), 13


@pytest.fixture(scope="module")
def scene():
    return draw_moving_scene(4, SIZE, split="test")


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


@pytest.mark.slow
def test_all_methods_see_the_maps_of_one_run(scene, monkeypatch):
    engine, runs = open_engine(EMBEDDED, "cpu", "onnxruntime"), []
    infer = engine.infer
    monkeypatch.setattr(engine, "infer", lambda frames, *rest: runs.append(frames) or infer(frames, *rest))
    frames = [scene.frame(0), scene.frame(1)]
    found = measure_clips(Segmenter(engine), {"clip": (frames, flow_truth(frames))}, lambda text: None)
    assert len(runs) == len(frames) and len(found) == 4
    assert found[TEMPORAL]["clips"]["clip"]["segments"] > 1 and 0 <= found[FRAME_BY_FRAME]["kept"] <= 1
    remembering = RememberingEngine(engine)
    for _ in range(2):
        maps = remembering.infer(runs[0])
    assert len(runs) == len(frames) + 1
    assert all(np.array_equal(one, other) for one, other in zip(maps, infer(runs[0]), strict=True))

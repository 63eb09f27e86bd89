"""How much changes under a mirror image: of the whole, and of the merge alone."""

import json
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from skimage import data
from typer.testing import CliRunner

from runtime import Segmenter
from runtime.engine.registry import EMBEDDED
from tools.evaluate.__main__ import app
from tools.evaluate.methods import Evaluator
from tools.evaluate.mirror import mirrored_shares
from tools.evaluate.variants import Wish, settle

COFFEE = data.coffee()[:256, :256, ::-1].copy()


def test_command_line(tmp_path):
    cv2.imwrite(str(tmp_path / "coffee.png"), COFFEE)
    run = lambda *more: CliRunner().invoke(app, ["mirror", *map(str, more)])  # noqa: E731
    result = run(tmp_path, "--backend", "onnxruntime", "--at-most", 0, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and found["photographs"] == 1 and found["worst"][0].endswith("coffee.png")
    assert 0 < found["merge"] < 1 and found["changed"] == pytest.approx(found["merge"] + found["network"])
    result = run(tmp_path / "nothing.png")
    assert result.exit_code == 1 and "nothing.png" in result.stderr


def test_the_parts_of_a_symmetric_network_are_equal(monkeypatch):
    """A network whose maps of a mirror image are the mirrored maps adds nothing to what the merge changes."""
    segmenter = Segmenter.open(device="cpu", backend="onnxruntime", flip=True)
    monkeypatch.setattr(segmenter.stages.route, "turns", False)
    whole, merge = mirrored_shares(segmenter.stages, COFFEE)
    assert whole == merge > 0


@pytest.mark.slow
def test_an_evaluation_flips_as_the_runtime_does():
    evaluator, path = Evaluator("cpu", "onnxruntime"), str(EMBEDDED)
    protocol = SimpleNamespace(protocol=SimpleNamespace(crop=None, background=False, classes=()))
    own = settle("diffseg", path, evaluator.engine(path).spec, protocol.protocol, Wish(threshold="0.5", pieces="keep"))
    truths = [np.zeros(COFFEE.shape[:2], np.int32)]
    image = np.ascontiguousarray(COFFEE[:, ::-1])

    def labels(frame, flip):
        return evaluator.labels(replace(own, flip=flip), protocol, frame, truths)

    flipped = labels(COFFEE, True)
    assert np.array_equal(labels(image, True)[:, ::-1], flipped) and not np.array_equal(labels(COFFEE, None), flipped)
    with Segmenter.open(device="cpu", backend="onnxruntime", flip=True, thresholds=0.5, pieces="keep") as segmenter:
        assert np.array_equal(segmenter(COFFEE).labels, np.unique(flipped, return_inverse=True)[1].reshape(256, 256))

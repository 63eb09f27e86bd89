import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from runtime import Segmenter
from tools.evaluate import classical
from tools.evaluate.__main__ import app
from tools.evaluate.scenes import measure
from tools.scenes.draw import draw_scene


def test_measure_is_repeatable():
    methods = {"one": classical.one_segment, "k-means": classical.kmeans_lab}
    first, again = measure(methods, 2, "test"), measure(methods, 2, "test")
    assert first["k-means"]["coverings"] == again["k-means"]["coverings"]
    assert first["one"]["segments"] == 1 and len(first["one"]["coverings"]) == 2


def test_unknown_engine_is_one_line(tmp_path):
    result = CliRunner().invoke(app, ["scenes", "--engine", str(tmp_path / "none.onnx")])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1 and "none.onnx" in result.stderr
    assert not result.stdout


def test_json_is_json(monkeypatch):
    class Fake:
        @classmethod
        def open(cls, *_, **__):
            return lambda frame: type("Result", (), {"labels": classical.one_segment(frame)})

    monkeypatch.setattr("runtime.segmenter.Segmenter", Fake)
    result = CliRunner().invoke(app, ["scenes", "--count", "1", "--json"])
    assert result.exit_code == 0, result.output
    methods = json.loads(result.stdout)["methods"]
    assert methods["diffseg"]["covering"] == methods["one-segment"]["covering"]
    assert set(methods) == {"diffseg", *classical.METHODS}


@pytest.mark.slow
def test_worst_scenes_are_drawn(tmp_path):
    picture = tmp_path / "worst.png"
    result = CliRunner().invoke(app, ["scenes", "--count", "2", "--worst", str(picture)])
    assert result.exit_code == 0, result.output
    strip = cv2.imread(str(picture))
    assert strip.shape == (256, 256, 3)  # two scenes at half size, their segments below
    scenes = {seed: draw_scene(seed, share=0.5, split="test").frame for seed in (0, 1)}
    small = {seed: cv2.resize(frame, (128, 128), interpolation=cv2.INTER_AREA) for seed, frame in scenes.items()}
    segmenter = Segmenter.open()
    coverings = measure({"DiffSeg": lambda frame: segmenter(frame).labels}, 2, "test")
    first = int(np.argmin(coverings["DiffSeg"]["coverings"]))
    assert np.abs(strip[:128, :128].astype(int) - small[first]).max() <= 1

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tools import evaluate


def test_covering_of_itself_is_one():
    truth = np.array([[0, 0, 1], [2, 2, 1]], np.int32)
    assert evaluate.covering(truth, truth) == 1.0
    assert evaluate.covering(truth, truth * 7 + 3) == 1.0


def test_covering_by_hand():
    truth = np.repeat(np.array([[0, 0, 0, 1]], np.int32), 4, 0)
    # One segment: IoU 12/16 for the first region and 4/16 for the second.
    assert evaluate.covering(truth, np.zeros_like(truth)) == pytest.approx(0.75 * 0.75 + 0.25 * 0.25)
    # Halves: region 0 (12) against the left half (8): 8/12; region 1 (4) against the right half (8): 4/8.
    halves = np.repeat(np.array([[0, 0, 1, 1]], np.int32), 4, 0)
    assert evaluate.covering(truth, halves) == pytest.approx(0.75 * 8 / 12 + 0.25 * 4 / 8)
    # Not symmetric: now the halves are the truth.
    assert evaluate.covering(halves, truth) == pytest.approx(0.5 * 8 / 12 + 0.5 * 4 / 8)


@pytest.mark.parametrize("labels", [np.zeros((2, 3), np.int32), np.full((2, 2), -1, np.int32)])
def test_covering_refuses_what_does_not_fit(labels):
    with pytest.raises(ValueError, match="one shape"):
        evaluate.covering(np.zeros((2, 2), np.int32), labels)


def test_classical_methods_find_two_colours():
    frame = np.full((64, 64, 3), 40, np.uint8)
    frame[:, 32:] = (60, 180, 200)
    truth = np.repeat((np.arange(64) >= 32).astype(np.int32)[None], 64, 0)
    assert evaluate.covering(truth, evaluate.kmeans_lab(frame, 2)) == 1.0
    assert evaluate.covering(truth, evaluate.felzenszwalb(frame)) > 0.9
    assert evaluate.covering(truth, evaluate.one_segment(frame)) == 0.5
    assert np.array_equal(evaluate.kmeans_lab(frame), evaluate.kmeans_lab(frame))


def test_measure_is_repeatable():
    methods = {"one": evaluate.one_segment, "k-means": evaluate.kmeans_lab}
    first, again = evaluate.measure(methods, 2, "test"), evaluate.measure(methods, 2, "test")
    assert first["k-means"]["coverings"] == again["k-means"]["coverings"]
    assert first["one"]["segments"] == 1 and len(first["one"]["coverings"]) == 2


def test_unknown_engine_is_one_line(tmp_path):
    result = CliRunner().invoke(evaluate.app, ["scenes", "--engine", str(tmp_path / "none.onnx")])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1 and "none.onnx" in result.stderr
    assert not result.stdout


def test_json_is_json(monkeypatch):
    class Fake:
        @classmethod
        def open(cls, *_, **__):
            return lambda frame: type("Result", (), {"labels": evaluate.one_segment(frame)})

    monkeypatch.setattr("runtime.segmenter.Segmenter", Fake)
    result = CliRunner().invoke(evaluate.app, ["scenes", "--count", "1", "--json"])
    assert result.exit_code == 0, result.output
    methods = json.loads(result.stdout)["methods"]
    assert methods["DiffSeg"]["covering"] == methods["one segment"]["covering"]
    assert len(methods) == 4

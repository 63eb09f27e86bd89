"""The model that Triton's Python backend runs, with a stand-in for Triton's module and for the engine."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from runtime import DiffSegError, Segmenter
from runtime.hosts.triton.model import Model
from tests.runtime.clips import StandIn


class TritonError(Exception):
    pass


class Capsule:
    """What NumPy reads a capsule of DLPack from."""

    def __init__(self, capsule):
        self.capsule = capsule

    def __dlpack__(self, **options):
        return self.capsule

    def __dlpack_device__(self):
        return 1, 0  # a CPU


class Bright(StandIn):
    """Segments by brightness above 128 times the threshold."""

    def _infer(self, inputs):
        if any((frame == 13).all() for frame in inputs["frame"]):
            raise RuntimeError("the card fell off\nthe bus")
        self.ahead.clear()
        self.calls += 1
        bright = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) > 128 * inputs["thresholds"][0] for frame in inputs["frame"]]
        return [np.array(bright, np.uint8), np.full(len(bright), 2, np.int32)]


@pytest.fixture
def model(monkeypatch):
    """A model that is loaded; `asked`: what was opened."""
    asked = {}

    def opened(path, device, **options):
        asked.update(options, path=str(path), device=device)
        if options["refine"] == "wrong":
            raise DiffSegError("refine: no such thing")
        return Segmenter(Bright(batch=None))

    monkeypatch.setattr(Segmenter, "open", opened)
    triton = SimpleNamespace(
        Tensor=SimpleNamespace(from_dlpack=lambda name, capsule: (name, np.from_dlpack(Capsule(capsule)))),
        InferenceResponse=lambda output_tensors=None, error=None: SimpleNamespace(
            tensors=dict(output_tensors or ()), error=error
        ),
        get_input_tensor_by_name=lambda request, name: request.get(name),
        TritonError=lambda text: text,
        TritonModelException=TritonError,
    )

    class TritonPythonModel(Model):
        pass

    TritonPythonModel.triton = triton
    found = TritonPythonModel()
    found.asked = asked
    found.load = lambda kind="CPU", **told: found.initialize(
        {
            "model_config": json.dumps({"parameters": {name: {"string_value": text} for name, text in told.items()}}),
            **{"model_repository": "/models/m", "model_version": "1"},
            **{"model_instance_kind": kind, "model_instance_device_id": "2"},
        }
    )
    return found


def request(*frames, thresholds=None):
    rows = {} if thresholds is None else {"thresholds": np.array(thresholds, np.float32)}
    return {"frame": np.stack(frames), **rows}


def frame(bright, size=(20, 30)):
    found = np.zeros((*size, 3), np.uint8)
    found[:, :bright] = 200
    return found


def test_it_opens_what_the_configuration_says(model):
    model.load(engine="a.plan", kind="GPU", threshold="0.5,0.4,0.3", refine="snap", min_area="0.01", threads="2")
    assert model.asked == {
        **{"path": "/models/m/1/a.plan", "device": "cuda:2", "backend": None, "thresholds": (0.5, 0.4, 0.3)},
        **{"refine": "snap", "min_area": 0.01, "pieces": "unlike", "options": {"threads": 2}},
    }
    model.load(engine="a.onnx", threshold="auto", pieces="keep")
    assert model.asked["pieces"] == "keep"
    assert (model.asked["device"], model.asked["thresholds"], model.asked["min_area"]) == ("cpu", "auto", 0)
    for wrong in ({"refine": "wrong"}, {"threshold": "high"}, {"threads": "two"}):
        with pytest.raises(TritonError):
            model.load(engine="a.onnx", **wrong)


def test_requests_of_several_sizes_and_thresholds(model):
    model.load(engine="a.onnx")
    answers = model.execute(
        [
            request(frame(10), frame(20)),
            request(frame(7, (40, 20))),
            request(frame(10), frame(10), thresholds=[[1.0], [2.0]]),
        ]
    )
    labels = [answer.tensors["labels"] for answer in answers]
    assert [(found.dtype, found.shape) for found in labels] == [
        (np.uint8, shape) for shape in ((2, 20, 30), (1, 40, 20), (2, 20, 30))
    ]
    wanted = Segmenter(Bright(batch=None))
    for found, one in zip([*labels[0], *labels[1], labels[2][0]], (10, 20, 7, 10), strict=True):
        size = found.shape
        assert np.array_equal(found, wanted(frame(one, size)).labels)
    assert [answer.tensors["segments"].tolist() for answer in answers] == [[[2], [2]], [[2]], [[2], [1]]]


def test_an_error_is_the_one_requests(model):
    model.load(engine="a.onnx")
    broken = np.full((20, 30, 3), 13, np.uint8)
    answers = model.execute(
        [
            request(frame(10)),
            request(frame(10), broken),
            request(frame(10), thresholds=[[np.nan]]),
            request(frame(10), thresholds=[[-1.0]]),
            {"frame": np.zeros((1, 0, 4, 3), np.uint8)},
            request(frame(5)),
        ]
    )
    assert [answer.error is None for answer in answers] == [True, False, False, False, False, True]
    assert "the card fell off the bus" in answers[1].error
    assert all("thresholds: expected one finite number above 0" in answers[place].error for place in (2, 3))
    assert np.array_equal(answers[5].tensors["labels"][0], frame(5)[..., 0] > 0)


def test_many_thresholds_keep_few_segmenters(model):
    model.load(engine="a.onnx")
    for number in range(80):
        model.execute([request(frame(3), thresholds=[[1 + number / 100]])])
    assert len(model._variants) <= 64
    assert model.execute([request(frame(3))])[0].error is None
    model.finalize()
    with pytest.raises(DiffSegError, match="closed"):
        assert model._segmenter.stages

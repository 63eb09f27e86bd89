"""The Open Inference Protocol, asked by Triton's own client; hostile requests by hand."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from runtime.pyramid.config import MergeConfig
from tests.runtime.serve.conftest import Bright, served

client_module = pytest.importorskip("tritonclient.http")
metadata = pytest.importorskip("runtime.serve.tensors").metadata


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)
    return np.stack([cv2.resize(block, (256, 256), interpolation=cv2.INTER_NEAREST) for block in blocks])


def inputs(frames, thresholds=None, binary=True):
    found = [client_module.InferInput("frame", list(frames.shape), "UINT8")]
    found[0].set_data_from_numpy(frames, binary_data=binary)
    if thresholds is not None:
        found.append(client_module.InferInput("thresholds", [len(thresholds)], "FP32"))
        found[1].set_data_from_numpy(np.array(thresholds, np.float32), binary_data=binary)
    return found


@pytest.fixture
def triton(tiny):
    client = client_module.InferenceServerClient(f"127.0.0.1:{tiny.port}")
    yield client
    client.close()


def test_health_and_metadata(triton):
    assert triton.is_server_live() and triton.is_server_ready()
    assert triton.is_model_ready("tiny") and triton.is_model_ready("tiny", "1")
    assert not triton.is_model_ready("other")
    assert triton.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    found = triton.get_model_metadata("tiny", "1")
    assert [one["name"] for one in found["inputs"]] == ["frame", "thresholds"]
    assert found["outputs"][0] == {"name": "labels", "datatype": "UINT8", "shape": [-1, 256, 256]}


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.slow
def test_labels_are_those_of_the_segmenter(tiny, triton, frames, binary):
    frames = frames[: 2 if binary else 1]
    wanted = [tiny.segmenter(frame) for frame in frames]
    outputs = [client_module.InferRequestedOutput(name, binary_data=binary) for name in ("labels", "segments")]
    answer = triton.infer("tiny", inputs(frames, binary=binary), outputs=outputs, request_id="7")
    assert np.array_equal(answer.as_numpy("labels"), [result.labels for result in wanted])
    assert answer.as_numpy("segments").tolist() == [result.count for result in wanted]
    assert answer.get_response()["id"] == "7"


@pytest.mark.slow
def test_thresholds_and_chosen_outputs(tiny, triton, frames):
    attended = tiny.segmenter.attend(frames[0])
    one = [client_module.InferRequestedOutput("segments", binary_data=False)]
    for threshold in (0.2, 0.9):
        answer = triton.infer("tiny", inputs(frames[:1], [threshold] * 3), outputs=one, model_version="1")
        assert answer.as_numpy("segments").tolist() == [attended.result(threshold).count]
        assert answer.as_numpy("labels") is None


def test_an_engine_that_gives_labels(frames):
    with served(Bright(batch=None, at_once=4)) as service:
        client = client_module.InferenceServerClient(f"127.0.0.1:{service.port}", concurrency=2)
        small = frames[:, :32, :32].copy()
        one = client.async_infer("bright", inputs(small, [0.5]))
        two = client.async_infer("bright", inputs(small, [1.5]))
        for answer, threshold in ((one, 0.5), (two, 1.5)):
            grey = np.array([cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in small])
            wanted = (grey > 128 * threshold).astype(np.uint8)
            for labels in wanted:  # numbered without gaps
                labels[:] = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
            assert np.array_equal(answer.get_result().as_numpy("labels"), wanted)
        client.close()


@pytest.mark.parametrize(("head", "names"), [("labels", ["frame", "thresholds"]), ("features", ["frame"])])
def test_inputs_are_those_that_the_engine_has_a_use_for(head, names):
    spec = replace(Bright().spec, head=head, input="float-nchw-rgb")
    found = metadata("a", spec, "diffseg", MergeConfig(spec.thresholds))["inputs"]
    assert [each["name"] for each in found] == names
    assert found[0]["datatype"] == "UINT8"  # the service makes planes of float itself


def test_errors_reach_the_client(triton, frames):
    with pytest.raises(client_module.InferenceServerException, match="expected the model 'tiny', found 'x'"):
        triton.infer("x", inputs(frames))
    with pytest.raises(client_module.InferenceServerException, match="expected the version 1, found '2'"):
        triton.infer("tiny", inputs(frames), model_version="2")
    with pytest.raises(client_module.InferenceServerException, match=r"expected the shape \[B, 256, 256, 3\]"):
        triton.infer("tiny", inputs(frames[:, :9]))
    with pytest.raises(client_module.InferenceServerException, match="thresholds: expected 3"):
        triton.infer("tiny", inputs(frames, [0.5]))
    with pytest.raises(client_module.InferenceServerException, match="at most 64 frames"):
        triton.infer("tiny", inputs(np.zeros((65, 256, 256, 3), np.uint8)))


ONE = {"name": "frame", "datatype": "UINT8", "shape": [1, 32, 32, 3]}
HOSTILE = {
    "no JSON": (b"{", {}, "expected a JSON object"),
    "deep": (b"[" * 100_000, {}, "expected a JSON object"),
    "a list": (b"[]", {}, "expected a JSON object, found list"),
    "no inputs": ({}, {}, "expected a list of tensors"),
    "inputs": ({"inputs": [1]}, {}, "expected a list of tensors"),
    "id": ({"id": 5, "inputs": [ONE]}, {}, "id"),
    "name": ({"inputs": [{**ONE, "name": "image"}]}, {}, "image"),
    "two names": ({"inputs": [{**ONE, "data": [0] * 3072}] * 2}, {}, "different names"),
    "type": ({"inputs": [{**ONE, "datatype": "BYTES"}]}, {}, "expected a datatype"),
    "other type": ({"inputs": [{**ONE, "datatype": "FP32", "data": [0] * 3072}]}, {}, "FP32"),
    "list as type": ({"inputs": [{**ONE, "datatype": ["UINT8"]}]}, {}, "expected a datatype"),
    "object as type": ({"inputs": [{**ONE, "datatype": {}}]}, {}, "expected a datatype"),
    "half a character": ({"inputs": [{**ONE, "name": "\ud800", "datatype": "X"}]}, {}, r"\ud800: expected a datatype"),
    "many sides": ({"inputs": [{**ONE, "shape": [1 << 30] * 2000, "data": [1]}]}, {}, "at most 4 whole numbers"),
    "shared memory": ({"inputs": [{**ONE, "parameters": {"shared_memory_region": "a"}}]}, {}, "shared_memory_region"),
    "classes": (
        {"inputs": [{**ONE, "data": [0] * 3072}], "outputs": [{"name": "labels", "parameters": {"classification": 3}}]},
        {},
        "labels: expected data in JSON or binary, found classification",
    ),
    "no data": ({"inputs": [ONE]}, {}, "expected data"),
    "few data": ({"inputs": [{**ONE, "data": [1, 2]}]}, {}, "expected 3072 values"),
    "ragged": ({"inputs": [{**ONE, "data": [[1], [1, 2]]}]}, {}, "expected data"),
    "text": ({"inputs": [{**ONE, "data": ["a"] * 3072}]}, {}, "expected data"),
    "float": ({"inputs": [{**ONE, "data": [0.5] * 3072}]}, {}, "expected data"),
    "range": ({"inputs": [{**ONE, "data": [256] * 3072}]}, {}, "expected data"),
    "negative shape": ({"inputs": [{**ONE, "shape": [-1, 32, 32, 3], "data": []}]}, {}, "whole numbers"),
    "shape": ({"inputs": [{**ONE, "shape": "1"}]}, {}, "whole numbers"),
    "other shape": ({"inputs": [{**ONE, "shape": [1, 16, 64, 3], "data": [0] * 3072}]}, {}, "[B, 32, 32, 3]"),
    "no frames": ({"inputs": [{**ONE, "shape": [0, 32, 32, 3], "data": []}]}, {}, "[B, 32, 32, 3]"),
    "binary": ({"inputs": [{**ONE, "parameters": {"binary_data_size": 3072}}]}, {}, "0 bytes"),
    "binary size": ({"inputs": [{**ONE, "parameters": {"binary_data_size": "x"}}]}, {}, "binary_data_size 'x'"),
    "length": ({"inputs": [ONE]}, {"Inference-Header-Content-Length": "-5"}, "expected a number"),
    "long length": ({"inputs": [ONE]}, {"Inference-Header-Content-Length": "99999"}, "expected a number"),
    "output": ({"inputs": [{**ONE, "data": [0] * 3072}], "outputs": [{"name": "x"}]}, {}, "outputs: expected"),
    "outputs": ({"inputs": [{**ONE, "data": [0] * 3072}], "outputs": 3}, {}, "outputs: expected"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests_are_one_line(service, name):
    body, headers, text = HOSTILE[name]
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer = service.json("POST", "/v2/models/bright/infer", sent, **headers)
    assert status == 400 and text in answer["error"] and "\n" not in answer["error"]


def test_bytes_behind_the_tensors_are_refused(service):
    head = json.dumps({"inputs": [{**ONE, "parameters": {"binary_data_size": 3072}}]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    assert service.ask("POST", "/v2/models/bright/infer", head + bytes(3072), **length)[0] == 200
    status, answer = service.json("POST", "/v2/models/bright/infer", head + bytes(3080), **length)
    assert status == 400 and "expected 3072 bytes behind the JSON, found 3080" in answer["error"]


def test_a_long_text_among_numbers_takes_no_memory_for_each_of_them():
    import tracemalloc

    from runtime.serve.settings import Refused
    from runtime.serve.tensors import _listed

    data = [1] * 50 + ["x" * 1_000_000]
    tracemalloc.start()
    with pytest.raises(Refused, match="expected data, a list of UINT8 values"):
        _listed("frame", data, "UINT8")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()

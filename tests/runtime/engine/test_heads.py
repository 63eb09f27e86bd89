"""A head is one entry: what an engine with it takes and gives, everywhere in the runtime, follows from the entry."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime import DiffSegError
from runtime.engine.backends.tensorrt_library import tensor_shapes
from runtime.engine.heads import HEADS, Head, Input
from runtime.engine.registry import EMBEDDED, open_engine
from runtime.engine.spec import METADATA_KEY, EngineSpec, sidecar_path


def embedded_spec(**changes):
    text = sidecar_path(EMBEDDED).read_text()
    return replace(EngineSpec.from_json(text, "tiny"), **({"auto": False} | changes))


def test_the_two_heads():
    maps, labels = embedded_spec(), embedded_spec(head="labels", batch=None)
    assert maps.outputs == ("attention_32x32", "attention_16x16", "attention_8x8", "attention_4x4")
    assert labels.outputs == ("labels", "segments")
    assert [HEADS[spec.head].route for spec in (maps, labels)] == ["maps", "labels"]
    assert tensor_shapes(maps) == {"frame": (1, 256, 256, 3)} | {
        f"attention_{side}x{side}": (1, side**2, side**2) for side in (32, 16, 8, 4)
    }
    assert tensor_shapes(labels) == {
        "frame": (-1, 256, 256, 3),
        "thresholds": (3,),
        "labels": (-1, 256, 256),
        "segments": (-1,),
    }


@pytest.fixture
def brightness(monkeypatch, tmp_path):
    """An engine with a head of its own: the frame's first channel, scaled by one number per colour."""
    gains = Input("gains", lambda spec: (1.0, 2.0), "one per colour", "--gain G,G")
    monkeypatch.setitem(
        HEADS,
        "brightness",
        Head("brightness", "labels", lambda spec: {"bright": (spec.batch, spec.height, spec.width)}, (gains,)),
    )
    spec = embedded_spec(head="brightness", height=8, width=16)
    nodes = [
        helper.make_node("Cast", ["frame"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["floats", "last"], ["brightest"], keepdims=0),
        helper.make_node("ReduceMax", ["gains"], ["gain"], keepdims=0),
        helper.make_node("Mul", ["brightest", "gain"], ["bright"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, 8, 16, 3]),
            helper.make_tensor_value_info("gains", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("bright", TensorProto.FLOAT, [1, 8, 16])],
        [helper.make_tensor("last", TensorProto.INT64, [1], [-1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.save(model, tmp_path / "brightness.onnx")
    return tmp_path / "brightness.onnx"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_head_is_added_by_an_entry(brightness, backend):
    pytest.importorskip(backend)
    engine = open_engine(brightness, "cpu", backend)
    frames = np.random.default_rng(0).integers(0, 256, (1, 8, 16, 3), np.uint8)
    assert engine.spec.outputs == ("bright",)
    for gains, largest in ((None, 2.0), ((3.0, 0.5), 3.0)):
        (found,) = engine.infer(frames, gains=gains)
        np.testing.assert_allclose(found, frames.max(-1) * largest)
    with pytest.raises(DiffSegError, match=r"gains: expected 2 finite numbers above 0, one per colour, found \[1.0\]"):
        engine.infer(frames, gains=(1.0,))
    with pytest.raises(DiffSegError, match="head brightness takes no thresholds; only labels does; leave them out"):
        engine.infer(frames, (0.5, 0.5, 0.5))
    assert tensor_shapes(engine.spec) == {"frame": (1, 8, 16, 3), "gains": (2,), "bright": (1, 8, 16)}


def test_without_its_entry_a_head_is_unknown(brightness, monkeypatch):
    monkeypatch.delitem(HEADS, "brightness")
    with pytest.raises(DiffSegError, match=r"head: expected attention or labels or features, found 'brightness'"):
        open_engine(brightness, "cpu", "onnxruntime")

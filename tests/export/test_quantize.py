"""Int8: what is quantised and what is not, and that an engine which changes the labels is refused."""

import collections

import cv2
import numpy as np
import onnx
import pytest
import skimage.data
from typer.testing import CliRunner

import export.quantize
from export.__main__ import app
from runtime.engine.registry import EMBEDDED, open_engine


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut", "coffee", "cat"):
        for index, half in enumerate(np.array_split(getattr(skimage.data, name)()[..., 2::-1], 2, axis=1)):
            cv2.imwrite(str(folder / f"{name}_{index}.png"), half)
    return folder


def quantize(photographs, output, *more):
    arguments = ["quantize", str(EMBEDDED), "--images", str(photographs), "--output", str(output), *more]
    return CliRunner().invoke(app, arguments)


@pytest.mark.slow
def test_int8_engine(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(export.quantize, "TIMED", 2)
    monkeypatch.setattr(export.quantize, "LEAST", 0.8)  # two photographs judge, which is too few to mean more
    done = quantize(photographs, tmp_path / "small")
    assert done.exit_code == 0, done.output
    assert "layers in int8" in done.stderr and "2 photographs keep" in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["small.onnx", "small.onnx.json"]
    graph = onnx.load(tmp_path / "small.onnx").graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    kinds = collections.Counter(
        (node.op_type, makers.get(node.input[0]) == "DequantizeLinear")
        for node in graph.node
        if node.op_type in ("Conv", "MatMul", "Softmax")
    )
    plain = collections.Counter(node.op_type for node in onnx.load(EMBEDDED).graph.node)
    assert kinds["Conv", False] == 1 and kinds["Conv", True] == plain["Conv"] - 1
    assert kinds["MatMul", True] > 0 and kinds["Softmax", False] == plain["Softmax"] and not kinds["Softmax", True]
    spec = open_engine(tmp_path / "small.onnx", "cpu").spec
    assert (spec.precision, spec.storage) == ("int8", "int8")
    for product in (
        node for node in graph.node if node.op_type == "MatMul" and makers.get(node.input[1]) != "DequantizeLinear"
    ):
        assert makers.get(product.input[0]) != "DequantizeLinear", "attention's products are float"
    again = CliRunner().invoke(app, ["check", str(tmp_path / "small.onnx"), "x"])
    assert again.exit_code == 1 and "compared on photographs" in again.stderr


@pytest.mark.slow
def test_refusals(photographs, tmp_path, monkeypatch):
    one = quantize(photographs / "cat_0.png", tmp_path / "x")
    assert one.exit_code == 1 and "expected at least 3 photographs, found 1" in one.stderr
    shares = iter(([0.9, 1.0], [0.92, 0.99], [0.93, 0.95]))
    monkeypatch.setattr(export.quantize, "_judge", lambda *_: next(shares))
    monkeypatch.setattr(export.quantize, "write_quantized", lambda *_: 0)
    worse = quantize(photographs, tmp_path / "x")
    assert worse.exit_code == 1 and "agree on 94.0% of the pixels, expected 95%, even with half" in worse.stderr
    assert not list(tmp_path.iterdir())
    # One judge leaves everything in doubt, and so do two that differ; of the last attempt the mean is enough.
    shares = iter(([0.99], [0.9, 1.0], [0.92, 0.99]))
    monkeypatch.setattr(export.quantize, "_gain", lambda *_: ("openvino", 1.0))
    doubtful = quantize(photographs, tmp_path / "x")
    assert doubtful.exit_code == 0 and "95.5% of the pixels of 2 photographs" in doubtful.stderr, doubtful.stderr


@pytest.mark.slow
def test_fewer_layers_where_all_lose_too_much(photographs, tmp_path, monkeypatch):
    """The first layers, which read the picture, stay float: what is judged second is what is kept.

    Of the first attempt the mean is high enough, but not without doubt.
    """
    shares = iter(([0.92, 0.99], [0.96, 0.96]))
    monkeypatch.setattr(export.quantize, "_judge", lambda *_: next(shares))
    monkeypatch.setattr(export.quantize, "_gain", lambda *_: ("openvino", 1.0))
    done = quantize(photographs, tmp_path / "small")
    assert done.exit_code == 0 and "90 layers in int8; 96.0% of the pixels of 2 photographs" in done.stderr, done.stderr
    products = [node for node in onnx.load(tmp_path / "small.onnx").graph.node if node.op_type in ("Conv", "MatMul")]
    makers = {name: node for node in onnx.load(tmp_path / "small.onnx").graph.node for name in node.output}
    quantised = [makers.get(node.input[1], node).op_type == "DequantizeLinear" for node in products]
    assert sum(quantised) == 90 and not any(quantised[: len(products) // 5])

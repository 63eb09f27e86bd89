"""Opening engines: the right one, or one line that says what is wrong."""

import importlib.util
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime import DiffSegError
from runtime.engine.registry import EMBEDDED, check_device, open_engine
from runtime.engine.spec import METADATA_KEY, EngineSpec, sidecar_path
from tests.runtime.uniform import write_uniform_engine


def refuses(path, match, device="cpu"):
    with pytest.raises(DiffSegError, match=match) as caught:
        open_engine(path, device)
    assert "\n" not in str(caught.value)


def test_embedded_default():
    engine = open_engine(device="cpu")
    assert engine.spec.source and engine.spec.head == "attention" and len(engine.spec.levels) == 4
    assert (engine.spec.height, engine.spec.width) == (256, 256)
    assert engine.spec == EngineSpec.from_json(sidecar_path(EMBEDDED).read_text(), "tiny")
    maps = engine.infer(np.zeros((1, 256, 256, 3), np.uint8))
    for level, found in zip(engine.spec.levels, maps, strict=True):
        n = level.height * level.width
        assert found.shape == (1, n, n)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-4)


def test_shipped_files_are_small():
    files = [EMBEDDED, sidecar_path(EMBEDDED), EMBEDDED.parent / "README.md"]
    assert sum(file.stat().st_size for file in files) <= 15e6


def test_missing_and_unknown(tmp_path):
    refuses(tmp_path / "no.onnx", r"no engine .*no.onnx; check the path, or export one with 'python -m export")
    (tmp_path / "model.pt").write_bytes(b"x")
    refuses(tmp_path / "model.pt", r"cannot run model.pt: expected an engine that ends in .onnx")
    refuses(tmp_path, "cannot run")
    (tmp_path / "text.onnx").write_text("hello")
    refuses(tmp_path / "text.onnx", "is not an ONNX file")
    (tmp_path / "empty.onnx").write_text("")
    refuses(tmp_path / "empty.onnx", "is not an ONNX file")


def test_the_embedded_engine_goes_by_its_name(tmp_path, monkeypatch):
    """Outside the checkout there is no engines/tiny.onnx, and none is needed."""
    monkeypatch.chdir(tmp_path)
    assert open_engine("tiny", "cpu").path == EMBEDDED
    for path in ("engines/tiny.onnx", "engines/tiny", tmp_path / "tiny.onnx"):
        refuses(path, r"no engine .*tiny.*; the engine tiny is embedded .*: leave the engine out, .*--engine tiny")
    path = write_uniform_engine(tmp_path / "tiny.onnx")
    assert open_engine("tiny.onnx", "cpu").path.resolve() == path


def test_truncated_engine(tmp_path):
    path = tmp_path / "e.onnx"
    path.write_bytes(EMBEDDED.read_bytes()[:100_000])
    refuses(path, "is not an ONNX file")


def test_an_onnx_model_that_is_no_engine(tmp_path):
    io = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", io[:1], io[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "other.onnx")
    refuses(tmp_path / "other.onnx", "is not an engine: expected an ONNX file with the metadata entry")
    spec = EngineSpec.from_json(sidecar_path(EMBEDDED).read_text(), "tiny")
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.save(model, tmp_path / "other.onnx")
    refuses(tmp_path / "other.onnx", r"has outputs \['y'\], its metadata names")


def test_engine_works_without_its_sidecar(tmp_path):
    path = write_uniform_engine(tmp_path / "e.onnx")
    sidecar_path(path).unlink()
    assert open_engine(path, "cpu").spec == EngineSpec.from_json(sidecar_path(EMBEDDED).read_text(), "tiny")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"timestep": 77}, "does not belong to e.onnx: field 'timestep' is 77 there"),
        ({"schema": 99}, "schema version 99, this runtime reads 1"),
        ({"levels": []}, "lacks or mistypes a field"),
        ({"height": "256"}, "lacks or mistypes a field"),
        ({"head": "tail"}, "lacks or mistypes a field"),
    ],
)
def test_sidecar_that_does_not_match(tmp_path, change, match):
    path = write_uniform_engine(tmp_path / "e.onnx")
    sidecar = json.loads(sidecar_path(path).read_text())
    sidecar_path(path).write_text(json.dumps(sidecar | change))
    refuses(path, match)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', "\xff"])
def test_sidecar_that_is_no_sidecar(tmp_path, text):
    path = write_uniform_engine(tmp_path / "e.onnx")
    sidecar_path(path).write_bytes(text.encode("latin-1"))
    refuses(path, "json")


def test_spec_survives_json():
    spec = EngineSpec.from_json(sidecar_path(EMBEDDED).read_text(), "tiny")
    assert EngineSpec.from_json(spec.to_json(), "x") == spec


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refuses(EMBEDDED, r"needs the package onnxruntime, which is not installed; pip install 'diffseg\[cpu\]'")


def test_cuda_without_cuda_is_an_error():
    refuses(EMBEDDED, r"device 'cuda:1' asked for, but this ONNX Runtime has no CUDA", device="cuda:1")


def test_devices():
    for device in ("auto", "cpu", "cuda", "cuda:0", "cuda:12"):
        check_device(device)
    for device in ("gpu", "cuda:", "cuda:-1", "CPU", ""):
        with pytest.raises(DiffSegError, match="expected auto, cpu, cuda or cuda:N"):
            check_device(device)

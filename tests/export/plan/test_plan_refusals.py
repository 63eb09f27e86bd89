"""Plans that cannot be built are refused in one line, before any work where that is possible."""

import importlib
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace as Thing

import onnx
import pytest
from onnx import helper

from export.plan.build import PlanRequest, check_request
from export.plan.types import check_network
from runtime import DiffSegError
from runtime.engine.backends.tensorrt_library import tensor_shapes
from runtime.engine.onnx_file import onnx_metadata
from runtime.engine.registry import EMBEDDED
from runtime.engine.spec import METADATA_KEY, EngineSpec, sidecar_path
from tests.export.plan.plans import copy_tiny, needs_rtx, refuses, run


@needs_rtx
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--profile", "1,2"], ["--profile: expected least,best,most"]),
        (["--profile", "1,1,2"], ["--profile: this engine takes 1 frame per call", "--batch dynamic"]),
        (["--targets", "9.9"], ["--targets: expected some of", "8.6", "found 9.9"]),
        (["--flavour", "magic"], ["--flavour: expected tensorrt or tensorrt_rtx, found 'magic'"]),
        (["--version-compatible"], ["--version-compatible: TensorRT-RTX has none"]),
        (["--hardware-compatible"], ["--hardware-compatible: TensorRT-RTX has none"]),
        (["--output", "FOLDER"], ["x.plan is a folder; expected a file or nothing there"]),
    ],
)
def test_bad_options(tmp_path, options, words):
    engine = copy_tiny(tmp_path)
    (tmp_path / "x.plan").mkdir()
    options = [tmp_path / "x" if option == "FOLDER" else option for option in options]
    flavour = [] if "--flavour" in options else ["--flavour", "tensorrt_rtx"]
    refuses(run("plan", engine, *options, *flavour), *words)
    assert not (tmp_path / "tiny.plan").exists()


def test_bad_engines(tmp_path):
    refuses(run("plan", tmp_path / "no.onnx"), "no engine", "no.onnx; export one with")
    refuses(run("plan", tmp_path), "is a folder; expected an engine")
    (tmp_path / "model.pt").write_text("x")
    refuses(run("plan", tmp_path / "model.pt"), "expected an ONNX engine, which ends in .onnx")
    engine = copy_tiny(tmp_path)
    engine.write_bytes(engine.read_bytes()[:100_000])
    refuses(run("plan", engine), "is not an engine: expected an ONNX file")
    (tmp_path / "text.onnx").write_text("hello, I am text")
    refuses(run("plan", tmp_path / "text.onnx"), "is not an engine")
    (tmp_path / "empty.onnx").write_text("")
    refuses(run("plan", tmp_path / "empty.onnx"), "is not an engine")


@needs_rtx
def test_no_room(tmp_path, monkeypatch):
    engine = copy_tiny(tmp_path)
    (tmp_path / "file").write_text("")
    refuses(run("plan", engine, "--output", tmp_path / "file" / "x"), "cannot write into", "choose another --output")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    refuses(run("plan", engine), "has 1 MB left, the plan needs about")
    assert not (tmp_path / "tiny.plan").exists()


@needs_rtx
def test_sidecar_of_another_engine(tmp_path):
    engine = copy_tiny(tmp_path)
    data = json.loads(sidecar_path(engine).read_text())
    sidecar_path(engine).write_text(json.dumps(data | {"timestep": 77}))
    refuses(run("plan", engine), "does not belong to tiny.onnx: field 'timestep' is 77 there")


@needs_rtx
def test_engine_without_the_precision_it_claims(tmp_path):
    """A float32 graph that says fp16 must not become a plan that says fp16."""
    engine = copy_tiny(tmp_path)
    model = onnx.load(engine)
    spec = EngineSpec.from_json(onnx_metadata(engine)[METADATA_KEY], "x")
    helper.set_model_props(model, {METADATA_KEY: replace(spec, precision="fp16").to_json()})
    onnx.save(model, engine)
    sidecar_path(engine).unlink()
    refuses(
        run("plan", engine), "says fp16, TensorRT reads 85 convolution in fp32", "export it again with --precision fp16"
    )
    helper.set_model_props(model, {METADATA_KEY: replace(spec, height=512).to_json()})
    onnx.save(model, engine)
    refuses(run("plan", engine), "takes and gives", "its metadata says")
    assert not (tmp_path / "tiny.plan").exists()


def test_a_softmax_in_half_precision_is_refused():
    """As engines have it that were exported when the VAE's own was in the precision of the rest."""
    spec = replace(EngineSpec.from_json(onnx_metadata(EMBEDDED)[METADATA_KEY], "x"), precision="fp16")
    trt = Thing(LayerType=Thing(CONVOLUTION=1, MATRIX_MULTIPLY=2, SOFTMAX=3))
    half, single = Thing(dtype=Thing(name="HALF")), Thing(dtype=Thing(name="FLOAT"))
    tensors = [Thing(name=name, shape=shape, dtype=single.dtype) for name, shape in tensor_shapes(spec).items()]

    def check(softmaxes):
        kinds = [(1, half), (2, half), *((3, tensor) for tensor in softmaxes)]
        layers = [Thing(type=kind, get_input=lambda _, tensor=tensor: tensor) for kind, tensor in kinds]
        network = Thing(
            num_inputs=1,
            get_input=lambda index: tensors[index],
            num_outputs=len(tensors) - 1,
            get_output=lambda index: tensors[1 + index],
            num_layers=len(layers),
            get_layer=lambda index: layers[index],
        )
        return check_network(trt, network, spec, Path("unet.onnx"))[1]

    exposed = sum(level.layers for level in spec.levels)
    assert check([single] * exposed)["softmax"] == {"fp32": exposed}
    for softmaxes in ([single] * (exposed - 1), [single] * exposed + [half], [half] * exposed):
        with pytest.raises(DiffSegError, match=r"unet.onnx: expected every softmax in fp32, .*export it again"):
            check(softmaxes)


def test_no_package(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "tensorrt" in name else find(name))
    engine = copy_tiny(tmp_path)
    refuses(run("plan", engine), "needs the package tensorrt or tensorrt_rtx; it is not installed; pip install")
    refuses(run("plan", engine, "--flavour", "tensorrt_rtx"), "pip install 'diffseg[rtx]'")
    # Before a model is so much as looked for:
    refuses(run("nowhere", "--output", tmp_path / "x", "--plan"), "needs the package tensorrt or tensorrt_rtx")
    refuses(run("nowhere", "--output", tmp_path / "x", "--tf32"), "go with --plan")


def test_on_jetson_the_systems_tensorrt_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(DiffSegError, match=r"JetPack brings TensorRT: .* with --system-site-packages"):
        check_request(PlanRequest())


def test_tensorrt_needs_the_gpu_that_will_run_it(monkeypatch):
    found = lambda name: object() if name == "tensorrt" else None  # noqa: E731

    def absent():
        raise DiffSegError("device 'cuda' needs an NVIDIA GPU")

    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setattr("export.plan.build.check_driver", absent)
    with pytest.raises(DiffSegError, match=r"builds a plan on the GPU that will run it: device 'cuda' .*tensorrt_rtx"):
        check_request(PlanRequest())
    monkeypatch.setattr("export.plan.build.check_driver", lambda: 1)
    assert check_request(PlanRequest(version_compatible=True, hardware_compatible=True)) == "tensorrt"
    with pytest.raises(DiffSegError, match="--targets goes with --flavour tensorrt_rtx"):
        check_request(PlanRequest(targets=("8.6",)))

"""Real plans, built by TensorRT-RTX without a GPU: they build, say what they are, and are refused politely here."""

import hashlib
import importlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from export.__main__ import app
from export.check import OutputCheck
from export.engine import ExportRequest, export_engine
from export.plan import PlanRequest, build_plan, check_request
from export.plan_source import onnx_metadata
from export.plan_types import layer_types
from export.progress import Stages
from runtime import DiffSegError
from runtime.engine import EMBEDDED, open_engine
from runtime.native import build
from runtime.plan import read_plan
from runtime.sidecar import METADATA_KEY, EngineSpec, sidecar_path

ROOT = Path(__file__).parents[2]
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refuses(result, *words):
    assert result.exit_code in (1, 2), result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and all(word in lines[0] for word in words), lines


def copy_tiny(folder):
    for file in (EMBEDDED, sidecar_path(EMBEDDED)):
        shutil.copy(file, folder / file.name)
    return folder / EMBEDDED.name


@pytest.fixture(scope="module")
def tiny_plan(tmp_path_factory):
    """The tiny engine's plan, by the command that people use."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed")
    folder = tmp_path_factory.mktemp("plan")
    result = run("plan", copy_tiny(folder))
    assert result.exit_code == 0, result.stderr
    assert "wrote" in result.stderr and result.stdout == ""
    return folder / "tiny.plan"


def test_plan_and_sidecar(tiny_plan):
    assert sorted(file.name for file in tiny_plan.parent.iterdir()) == [
        *("tiny.onnx", "tiny.onnx.json", "tiny.plan", "tiny.plan.json")
    ]
    spec, plan = read_plan(tiny_plan)
    engine = open_engine(EMBEDDED, "cpu", "onnxruntime").spec
    assert replace(spec, plan=None) == engine
    assert plan.flavour == "tensorrt_rtx" and plan.version == importlib.import_module("tensorrt_rtx").__version__
    assert plan.sha256 == hashlib.sha256(tiny_plan.read_bytes()).hexdigest()
    assert plan.types["frame"] == "uint8" and plan.types["attention_32x32"] == "float"
    assert set(plan.arithmetic["convolution"]) == set(plan.arithmetic["matrix_multiply"]) == {"fp32"}
    assert plan.arithmetic["softmax"]["fp32"] >= 10 and not plan.tf32 and plan.seconds > 0
    assert EngineSpec.from_json(spec.to_json(), "x") == spec
    try:
        build.check_driver()
    except DiffSegError:
        # What only a GPU can tell is not guessed.
        assert (plan.gpu, plan.compute_capability, plan.inspected) == (None, None, None)


def test_real_plan_is_refused_without_a_driver(tiny_plan):
    try:
        build.check_driver()
    except DiffSegError:
        with pytest.raises(
            DiffSegError, match=r"tiny.plan: device 'cuda' needs an NVIDIA GPU and its driver, found none"
        ):
            open_engine(tiny_plan)
    else:
        pytest.skip("there is a GPU")


def test_real_library_is_held_to_the_version(tiny_plan, tmp_path):
    for file in (tiny_plan, sidecar_path(tiny_plan)):
        shutil.copy(file, tmp_path / file.name)
    sidecar = tmp_path / "tiny.plan.json"
    data = json.loads(sidecar.read_text())
    data["plan"]["version"] = "1.4.0.76"
    sidecar.write_text(json.dumps(data))
    with pytest.raises(DiffSegError, match=r"was built with TensorRT-RTX 1.4.0.76 and runs with that version alone"):
        open_engine(tmp_path / "tiny.plan")


@needs_rtx
def test_dynamic_batch_not_square(small_engine, tmp_path):
    spec = build_plan(small_engine, tmp_path / "p.plan", PlanRequest(profile=(1, 2, 3)), Stages())
    assert spec.batch is None and spec.plan.batch == (1, 2, 3) and (spec.height, spec.width) == (128, 192)
    assert read_plan(tmp_path / "p.plan")[0] == spec


@needs_rtx
def test_labels_in_half_precision(small_pipeline, tmp_path):
    """All of DiffSeg in a plan, with a loop over the frames of a dynamic batch around its loops.

    TensorRT cannot build a loop that reads another loop's result as it is ("No nesting relationship"): the head
    computes something between them.
    """
    engine = tmp_path / "l.onnx"
    request = ExportRequest(
        model=str(small_pipeline),
        size=(64, 128),
        head="labels",
        precision="bf16",
        batch=None,
        thresholds=(0.3, 0.2, 0.2),
    )
    # The check computes softmax in float32, as the graph says: in bfloat16 rows sum to 1 within 2e-3 alone.
    maps = [check for check in export_engine(request, engine).checks if isinstance(check, OutputCheck)]
    assert len(maps) == 4 and max(check.row_sum for check in maps) < 1e-5
    spec = build_plan(engine, tmp_path / "l.plan", PlanRequest(profile=(1, 1, 2)), Stages())
    assert spec.plan.types == {"frame": "uint8", "thresholds": "float", "labels": "uint8", "segments": "int32"}
    assert set(spec.plan.arithmetic["convolution"]) == {"bf16"}
    assert set(spec.plan.arithmetic["matrix_multiply"]) == {"bf16", "fp32"}  # the head's own are never less


@needs_rtx
def test_export_and_plan_in_one(small_pipeline, tmp_path):
    result = run(
        *(small_pipeline, "--output", tmp_path / "unet", "--size", "64x64", "--precision", "fp16", "--plan"),
        *("--workspace", "512", "--targets", "8.6,12.0"),
    )
    assert result.exit_code == 0, result.stderr
    spec, plan = read_plan(tmp_path / "unet.plan")
    assert spec.precision == "fp16" and set(plan.arithmetic["convolution"]) == {"fp16"}
    assert (plan.workspace, plan.targets) == (512 * 2**20, ("8.6", "12.0"))


@needs_rtx
def test_loops_that_read_each_other(tmp_path):
    """The parser's limit that the head works around, as the smallest graph: where it falls, so may the workaround."""
    trt = importlib.import_module("tensorrt_rtx")

    def loop(name, source):
        value = helper.make_tensor_value_info
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["go"], ["going"]),
                helper.make_node("Add", ["carried", source], ["sum"]),
            ],
            name,
            [
                value("i", TensorProto.INT64, []),
                value("go", TensorProto.BOOL, []),
                value("carried", TensorProto.FLOAT, [2]),
            ],
            [value("going", TensorProto.BOOL, []), value("sum", TensorProto.FLOAT, [2])],
        )
        return helper.make_node("Loop", ["trips", "on", "start"], [f"{name}_out"], body=body)

    def builds(between):
        nodes = [loop("first", "start")]
        nodes += [helper.make_node("Neg", ["first_out"], ["mended"])] if between else []
        nodes += [loop("second", "mended" if between else "first_out")]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("start", TensorProto.FLOAT, [2])],
            [helper.make_tensor_value_info("second_out", TensorProto.FLOAT, [2])],
            [
                helper.make_tensor("trips", TensorProto.INT64, [], [3]),
                helper.make_tensor("on", TensorProto.BOOL, [], [True]),
            ],
        )
        path = tmp_path / "loops.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
        words = []
        from runtime.backends.tensorrt_library import make_logger

        logger = make_logger(trt, words)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(path))
        return builder.build_serialized_network(network, builder.create_builder_config()) is not None, " ".join(words)

    assert builds(between=True)[0]
    built, words = builds(between=False)
    assert not built and "nesting" in words.lower()


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
    refuses(run("plan", tmp_path / "model.pt"), "expected an ONNX engine, .onnx")
    engine = copy_tiny(tmp_path)
    engine.write_bytes(engine.read_bytes()[:100_000])
    refuses(run("plan", engine), "is no engine: expected an ONNX file")
    (tmp_path / "text.onnx").write_text("hello, I am text")
    refuses(run("plan", tmp_path / "text.onnx"), "is no engine")
    (tmp_path / "empty.onnx").write_text("")
    refuses(run("plan", tmp_path / "empty.onnx"), "is no engine")


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


def test_metadata_is_onnxs_own():
    assert onnx_metadata(EMBEDDED) == {entry.key: entry.value for entry in onnx.load(EMBEDDED).metadata_props}


def test_no_package(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "tensorrt" in name else find(name))
    engine = copy_tiny(tmp_path)
    refuses(run("plan", engine), "needs the package tensorrt or tensorrt_rtx; it is not installed; pip install")
    refuses(run("plan", engine, "--flavour", "tensorrt_rtx"), "pip install 'diffseg[rtx]'")
    # Before a model is so much as looked for:
    refuses(run("nowhere", "--output", tmp_path / "x", "--plan"), "needs the package tensorrt or tensorrt_rtx")
    refuses(run("nowhere", "--output", tmp_path / "x", "--tf32"), "go with --plan")


def test_tensorrt_needs_the_gpu_that_will_run_it(monkeypatch):
    found = lambda name: object() if name == "tensorrt" else None  # noqa: E731

    def absent():
        raise DiffSegError("device 'cuda' needs an NVIDIA GPU")

    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setattr("export.plan.check_driver", absent)
    with pytest.raises(DiffSegError, match=r"builds a plan on the GPU that will run it: device 'cuda' .*tensorrt_rtx"):
        check_request(PlanRequest())
    monkeypatch.setattr("export.plan.check_driver", lambda: 1)
    assert check_request(PlanRequest(version_compatible=True, hardware_compatible=True)) == "tensorrt"
    with pytest.raises(DiffSegError, match="--targets goes with --flavour tensorrt_rtx"):
        check_request(PlanRequest(targets=("8.6",)))


def test_types_are_read_from_the_inspectors_text():
    ten = {"Layers": [{"Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]}, {"Outputs": []}]}
    eleven = {
        "Layers": [{"Outputs": [{"Format": "kLINEAR", "DataType": "BFloat16"}]}, {"Outputs": [{"DataType": "Float"}]}]
    }
    assert layer_types(json.dumps(ten)) == {"fp16": 1}
    assert layer_types(json.dumps(eleven)) == {"bf16": 1, "fp32": 1}
    assert layer_types("names alone") == layer_types('{"Layers": ["conv"]}') == {}


@needs_rtx
def test_interrupted_build_leaves_nothing(tmp_path):
    engine = copy_tiny(tmp_path)
    command = [sys.executable, "-m", "export", "plan", str(engine)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "tensorrt" not in maps.read_text():  # until the builder is there
        time.sleep(0.05)
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the build was faster than the interruption")
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert "interrupted" in errors
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tiny.onnx", "tiny.onnx.json"]


@needs_rtx
@pytest.mark.slow
def test_full_size(tmp_path):
    """Stable Diffusion 1.5's own shape in fp16, with weights in a file of their own."""
    from tools.benchmark_plan import measure_plan
    from tools.random_pipelines import save_random_pipeline

    if shutil.disk_usage(tmp_path).free < 8e9:
        pytest.skip("needs 8 GB of disk")
    try:
        model = save_random_pipeline(tmp_path / "sd15", "sd15", quick="float16")
        options = {"precision": "fp16", "head": "attention"}
        found = measure_plan(str(model), str(tmp_path / "engine.onnx"), options)
        assert (tmp_path / "engine.onnx.data").stat().st_size > 1.6e9
        spec, plan = read_plan(tmp_path / "engine.plan")
    finally:
        shutil.rmtree(tmp_path)  # pytest keeps its folders
    assert found["peak_gb"] < 8
    assert plan.size > 1.6e9 and set(plan.arithmetic["convolution"]) == {"fp16"}
    assert [(level.height, level.layers) for level in spec.levels] == [(64, 5), (32, 5), (16, 5), (8, 1)]
    assert plan.arithmetic["softmax"]["fp32"] == 16 + 15  # maps, and prompts before the last map

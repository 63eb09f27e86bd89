"""Real plans, built by TensorRT-RTX without a GPU: they build, say what they are, and are refused politely here."""

import hashlib
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import onnx
import pytest
from onnx import TensorProto, helper

from export.check.maps import OutputCheck
from export.engine import ExportRequest, export_engine
from export.plan.build import PlanRequest, build_plan
from export.plan.types import layer_types
from export.progress import Phases
from runtime import DiffSegError
from runtime.engine.onnx_file import onnx_metadata
from runtime.engine.plan import read_plan
from runtime.engine.registry import EMBEDDED, open_engine
from runtime.engine.spec import METADATA_KEY, EngineSpec, sidecar_path
from runtime.gpu import probe
from tests.export.plan.plans import ROOT, copy_tiny, needs_rtx, run


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
        probe.check_driver()
    except DiffSegError:
        # What only a GPU can tell is not guessed.
        assert (plan.gpu, plan.compute_capability, plan.inspected) == (None, None, None)


def test_real_plan_is_refused_without_a_driver(tiny_plan):
    try:
        probe.check_driver()
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
    with pytest.raises(DiffSegError, match=r"was built with TensorRT-RTX 1.4.0.76 and runs only with that version"):
        open_engine(tmp_path / "tiny.plan")


# Every head in every precision; with either head one of a dynamic batch, one that is not square, and one of both.
COMBINATIONS = {
    ("attention", "fp32"): ((128, 192), (1, 2, 3)),  # the engine that many tests share
    ("attention", "fp16"): ((64, 128), None),
    ("attention", "bf16"): ((64, 64), (2, 2, 4)),
    ("labels", "fp32"): ((128, 64), None),
    ("labels", "fp16"): ((64, 64), (1, 3, 3)),
    ("labels", "bf16"): ((64, 128), (1, 1, 2)),
}
SELDOM = (("attention", "bf16"), ("labels", "fp32"), ("labels", "bf16"))  # 40 s each


@needs_rtx
@pytest.mark.parametrize(
    ("head", "precision"),
    [pytest.param(*one, marks=pytest.mark.proof if one in SELDOM else ()) for one in COMBINATIONS],
)
def test_every_head_in_every_precision(small_pipeline, small_engine, tmp_path, head, precision):
    """All of them build, with the types and in the precision that they say.

    TensorRT cannot build a loop that reads another loop's result as it is ("No nesting relationship"), as the labels of
    a dynamic batch would have it: the head computes something between them.
    """
    size, batch = COMBINATIONS[head, precision]
    layout = "float-nchw-rgb" if (head, precision) == ("labels", "fp16") else "uint8-nhwc-bgr"
    engine = small_engine
    if (head, precision) != ("attention", "fp32"):
        engine = tmp_path / "engine.onnx"
        request = ExportRequest(
            model=str(small_pipeline),
            size=size,
            head=head,
            precision=precision,
            batch=None if batch else 1,
            thresholds=(0.3, 0.2, 0.2),
            input=layout,
        )
        # The check computes softmax in float32, as the graph says: in bfloat16 rows sum to 1 within 2e-3 alone.
        checked = (head, precision) == ("attention", "bf16")
        maps = export_engine(request, engine, check=checked).checks
        rows = [check.row_sum for check in maps if isinstance(check, OutputCheck)]
        assert len(rows) == 4 * checked and max(rows, default=0) < 1e-5
    spec = build_plan(engine, tmp_path / "p.plan", PlanRequest(profile=batch), Phases())
    assert read_plan(tmp_path / "p.plan")[0] == spec
    assert replace(spec, plan=None) == EngineSpec.from_json(onnx_metadata(engine)[METADATA_KEY], "x")
    assert (spec.head, spec.precision, (spec.height, spec.width)) == (head, precision, size)
    assert (spec.batch, spec.plan.batch) == ((None, batch) if batch else (1, None))
    maps = {level.output: "float" for level in spec.levels}
    labels = {"thresholds": "float", "labels": "uint8", "segments": "int32"}
    assert spec.plan.types == {"frame": layout.split("-")[0]} | (labels if head == "labels" else maps)
    found = spec.plan.arithmetic
    assert set(found["convolution"]) == {precision}
    # The head's own products are never in less than float32.
    assert set(found["matrix_multiply"]) == {precision} | ({"fp32"} if head == "labels" else set())
    assert found["softmax"] == {"fp32": 10 + 9 + 1}  # maps, prompts before the last map, and the VAE's own


@pytest.mark.slow
@needs_rtx
def test_export_and_plan_in_one(small_pipeline, tmp_path):
    """In one command, and the builder in a process that PyTorch has left: run as people run it."""
    command = [sys.executable, "-m", "export", str(small_pipeline), "--output", str(tmp_path / "unet"), "--plan"]
    command += ["--size", "64x64", "--precision", "fp16", "--workspace", "512", "--targets", "8.6,12.0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = re.findall(r"peak memory ([0-9.]+) GB", done.stderr)
    assert float(after) < float(before) and done.stdout == ""
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
        from runtime.engine.backends.tensorrt_library import make_logger

        logger = make_logger(trt, words)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(path))
        return builder.build_serialized_network(network, builder.create_builder_config()) is not None, " ".join(words)

    assert builds(between=True)[0]
    built, words = builds(between=False)
    assert not built and "nesting" in words.lower()


def test_metadata_is_onnxs_own():
    assert onnx_metadata(EMBEDDED) == {entry.key: entry.value for entry in onnx.load(EMBEDDED).metadata_props}


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
    """Ctrl-C as soon as the builder shows its first phase: it is asked to stop, and nothing is left of the plan."""
    code = """
import os, signal
from rich.progress import Progress
from export.__main__ import app
from runtime.terminal import run

add = Progress.add_task

def interrupted(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return add(*arguments, **options)

Progress.add_task = interrupted
run(app, "export")
"""
    command = [sys.executable, "-c", code, "plan", str(copy_tiny(tmp_path))]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tiny.onnx", "tiny.onnx.json"]


@needs_rtx
@pytest.mark.proof
def test_full_size(tmp_path):
    """Stable Diffusion 1.5's own shape in fp16, with weights in a file of their own."""
    from tools.benchmark.plan import measure_plan
    from tools.tiny.random_pipelines import save_random_pipeline

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
    # Maps, prompts before the last map, and the VAE's own.
    assert plan.arithmetic["softmax"] == {"fp32": 16 + 15 + 1}

"""What `diffseg triton` writes, held to Triton's own protobuf; and what it says of bad input."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from runtime.engine.registry import EMBEDDED, open_engine
from runtime.engine.spec import METADATA_KEY, EngineSpec, Level, sidecar_path
from runtime.hosts.triton.__main__ import app
from tests.runtime.clips import small_disk
from tests.runtime.engine.plans.conftest import write_plan
from tests.runtime.uniform import write_uniform_engine

TYPES = {"frame": "uint8", "thresholds": "float", "labels": "uint8", "segments": "int32"}


def write_labels_engine(path, batch=None, weights=None):
    """An engine with the head labels that segments by brightness; `weights`: the name of a file for a constant."""
    text = sidecar_path(EMBEDDED).read_text()
    spec = replace(
        EngineSpec.from_json(text, "tiny"),
        **{"head": "labels", "height": 16, "width": 24, "batch": batch, "thresholds": (0.5, 0.5), "auto": False},
        levels=(Level(16, 16, 1),),
    )
    nodes = [
        helper.make_node("Cast", ["frame"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["floats", "last"], ["brightest"], keepdims=0),
        helper.make_node("ReduceMax", ["thresholds"], ["threshold"], keepdims=0),
        helper.make_node("Mul", ["threshold", "scale"], ["limit"]),
        helper.make_node("Greater", ["brightest", "limit"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["labels"], to=TensorProto.UINT8),
        helper.make_node("Shape", ["frame"], ["count"], start=0, end=1),
        helper.make_node("Expand", ["two", "count"], ["segments"]),
    ]
    frames = batch or "batch"
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("frame", TensorProto.UINT8, [frames, 16, 24, 3]),
            helper.make_tensor_value_info("thresholds", TensorProto.FLOAT, [2]),
        ],
        [
            helper.make_tensor_value_info("labels", TensorProto.UINT8, [frames, 16, 24]),
            helper.make_tensor_value_info("segments", TensorProto.INT32, [frames]),
        ],
        [
            helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
            helper.make_tensor("scale", TensorProto.FLOAT, [300], np.full(300, 200, np.float32).tobytes(), raw=True),
            helper.make_tensor("two", TensorProto.INT32, [1], [2]),
        ],
    )
    graph.initializer[1].dims[:] = [1, 1, 300]
    graph.node.insert(3, helper.make_node("ReduceMax", ["scale"], ["one"], keepdims=0))
    graph.node[4].input[1] = "one"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    apart = {} if weights is None else {"save_as_external_data": True, "location": weights, "size_threshold": 1000}
    onnx.save(model, path, **apart)
    return path


@pytest.fixture(scope="module")
def protobuf():
    """Triton's published definition of config.pbtxt. The module alone: the client for gRPC is not needed."""
    client = importlib.util.find_spec("tritonclient")
    if client is None:
        pytest.skip("needs the package tritonclient")
    path = Path(client.origin).with_name("grpc") / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(tmp_path):
    """Writes a model into `models/`; gives the exit status, the lines of stderr, and stdout."""

    def run(engine, *options):
        done = CliRunner().invoke(app, [str(engine), "--output", str(tmp_path / "models"), *options])
        return done.exit_code, done.stderr.splitlines(), done.stdout

    return run


@pytest.fixture
def config(call, tmp_path, protobuf):
    """The parsed config.pbtxt of a model, with its folder."""
    from google.protobuf import text_format

    def parsed(engine, *options):
        status, lines, stdout = call(engine, *options)
        assert status == 0, lines
        folder = Path(stdout.strip())
        assert folder.parent == tmp_path / "models"
        found = text_format.Parse((folder / "config.pbtxt").read_text(), protobuf.ModelConfig())
        assert found.name == folder.name and all(group.count == 1 for group in found.instance_group)
        check_first_request(found, folder, protobuf)
        return found, folder, lines

    return parsed


def check_first_request(config, folder, protobuf):
    """Its tensors are those of the model, whole: Triton refuses to load a model otherwise."""
    (request,) = config.model_warmup
    assert request.batch_size == 1
    needed = {one.name: one for one in config.input if not one.optional}
    assert set(request.inputs) == set(needed)
    for name, one in request.inputs.items():
        assert one.data_type == needed[name].data_type and len(one.dims) == len(needed[name].dims)
        assert all(side > 0 and limit in (-1, side) for side, limit in zip(one.dims, needed[name].dims, strict=True))
        if one.input_data_file:
            assert (folder / "warmup" / one.input_data_file).stat().st_size == 4 * np.prod(one.dims)
        else:
            assert one.random_data


def tensors(given, protobuf):
    return {one.name: (protobuf.DataType.Name(one.data_type), list(one.dims)) for one in given}


def test_an_engine_with_attention_goes_to_the_python_backend(config, protobuf, tmp_path):
    engine = write_uniform_engine(tmp_path / "maps.onnx")
    options = "--threshold 0.6,0.5,0.4 --refine snap --min-area 0.01 --threads 1 --device cuda:1 --max-batch 4"
    found, folder, lines = config(engine, *options.split())
    assert lines == ["backend python"]
    assert (found.backend, found.max_batch_size, found.HasField("dynamic_batching")) == ("python", 4, True)
    assert tensors(found.input, protobuf) == {"frame": ("TYPE_UINT8", [-1, -1, 3]), "thresholds": ("TYPE_FP32", [3])}
    assert [(one.optional, one.allow_ragged_batch) for one in found.input] == [(False, True), (True, False)]
    assert tensors(found.output, protobuf) == {"labels": ("TYPE_UINT8", [-1, -1]), "segments": ("TYPE_INT32", [1])}
    assert [(group.kind, list(group.gpus)) for group in found.instance_group] == [(1, [1])]
    told = {name: one.string_value for name, one in found.parameters.items()}
    assert told == {
        **{"engine": "maps.onnx", "threshold": "0.6,0.5,0.4", "refine": "snap", "min_area": "0.01", "threads": "1"}
    }
    assert (folder / "1" / "maps.onnx").read_bytes() == engine.read_bytes()
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["maps.onnx", "maps.onnx.json", "model.py"]


def test_an_engine_with_labels_goes_to_onnx_runtime(config, protobuf, tmp_path):
    """In batches: the thresholds are constants of the file, and a program without Triton may still give others."""
    engine = write_labels_engine(tmp_path / "labels.onnx", weights="labels.data")
    found, folder, lines = config(engine, "--threshold", "0.9", "--threads", "2", "--device", "cpu", "--name", "bright")
    assert (lines, folder.name) == (["backend onnxruntime"], "bright")
    assert (found.backend, found.max_batch_size, found.HasField("dynamic_batching")) == ("onnxruntime", 8, True)
    assert tensors(found.input, protobuf) == {"frame": ("TYPE_UINT8", [16, 24, 3])}
    assert tensors(found.output, protobuf) == {"labels": ("TYPE_UINT8", [16, 24]), "segments": ("TYPE_INT32", [1])}
    assert [one.HasField("reshape") for one in found.output] == [False, True]
    assert found.parameters["intra_op_thread_count"].string_value == "2"
    assert found.instance_group[0].kind == protobuf.ModelInstanceGroup.KIND_CPU
    assert (folder / "1" / "labels.data").read_bytes() == (tmp_path / "labels.data").read_bytes()

    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    assert [one.name for one in session.get_inputs()] == ["frame"]
    labels, segments = session.run(["labels", "segments"], {"frame": frames})
    assert np.array_equal(labels, frames.max(-1) > np.float32(0.9) * 200) and segments.tolist() == [2, 2, 2]
    ours = open_engine(folder / "1" / "model.onnx", "cpu", "onnxruntime")
    assert np.array_equal(ours.infer(frames, thresholds=(0.3, 0.3))[0], frames.max(-1) > np.float32(0.3) * 200)


@pytest.mark.parametrize("batch", [None, 2])
def test_without_batches_a_request_may_bring_thresholds(config, protobuf, tmp_path, batch):
    engine = write_labels_engine(tmp_path / "labels.onnx", batch)
    found, folder, lines = config(engine, "--threshold", "0.7", *([] if batch else ["--max-batch", "0"]))
    reason = "the engine takes exactly 2 at once; export it with --batch dynamic" if batch else "--max-batch is 0"
    assert lines == [f"backend onnxruntime; Triton runs each request by itself: {reason}"]
    assert (found.max_batch_size, found.HasField("dynamic_batching"), len(found.instance_group)) == (0, False, 0)
    first = batch or -1
    assert tensors(found.input, protobuf) == {
        "frame": ("TYPE_UINT8", [first, 16, 24, 3]),
        "thresholds": ("TYPE_FP32", [2]),
    }
    assert tensors(found.output, protobuf) == {
        "labels": ("TYPE_UINT8", [first, 16, 24]),
        "segments": ("TYPE_INT32", [first]),
    }
    assert [one.optional for one in found.input] == [False, True]
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    assert [one.name for one in session.get_inputs()] == ["frame"]
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    for given, threshold in (({}, 0.7), ({"thresholds": np.array([0.3, 0.3], np.float32)}, 0.3)):
        labels = session.run(["labels"], {"frame": frames} | given)[0]
        assert np.array_equal(labels, frames.max(-1) > np.float32(threshold) * 200)


def test_a_plan_goes_to_tensorrt(config, protobuf, tmp_path):
    plan = write_plan(tmp_path, head="labels", batch=None, types=TYPES)
    own = json.loads(plan.with_name(plan.name + ".json").read_text())["thresholds"]
    found, folder, lines = config(plan)
    assert lines[0].startswith("backend tensorrt; Triton runs each request by itself: a plan takes thresholds")
    assert (found.backend, found.max_batch_size) == ("tensorrt", 0)
    assert tensors(found.input, protobuf)["frame"] == ("TYPE_UINT8", [-1, 256, 256, 3])
    assert not any(one.optional for one in found.input)
    assert tensors(found.output, protobuf)["labels"] == ("TYPE_UINT8", [-1, 256, 256])
    assert np.frombuffer((folder / "warmup" / "thresholds").read_bytes(), "<f4").tolist() == pytest.approx(own)
    assert (folder / "1" / "model.plan").read_bytes() == plan.read_bytes()


@pytest.mark.parametrize(
    "fields", [{"head": "attention"}, {"head": "labels", "flavour": "tensorrt_rtx"}], ids=["maps", "rtx"]
)
def test_other_plans_go_to_the_python_backend(config, tmp_path, fields):
    found, folder, _ = config(write_plan(tmp_path, **fields), "--device", "cuda")
    assert (found.backend, found.parameters["engine"].string_value) == ("python", "unet.plan")
    assert (folder / "1" / "unet.plan.json").is_file()
    assert [(group.kind, list(group.gpus)) for group in found.instance_group] == [(1, [])]


@pytest.mark.parametrize("most", [0, 8])
def test_planar_frames(protobuf, most):
    from google.protobuf import text_format

    from runtime.hosts.triton.config import graph_config
    from runtime.hosts.triton.pbtxt import to_text
    from runtime.hosts.triton.repository import _types

    spec = EngineSpec.from_json(sidecar_path(EMBEDDED).read_text(), "tiny")
    spec = replace(spec, head="labels", batch=None, input="float-nchw-rgb")
    message = graph_config("planar", spec, _types(spec), device="auto", most=most, parameters={})
    found = text_format.Parse(to_text(message), protobuf.ModelConfig())
    batch = [] if most else [-1]
    assert tensors(found.input, protobuf)["frame"] == ("TYPE_FP32", [*batch, 3, 256, 256])
    first = found.model_warmup[0].inputs["frame"]
    assert (protobuf.DataType.Name(first.data_type), list(first.dims)[-3:]) == ("TYPE_FP32", [3, 256, 256])


def test_words_are_outputs_of_the_graph(protobuf):
    from google.protobuf import text_format

    from runtime.hosts.triton.config import graph_config
    from runtime.hosts.triton.pbtxt import to_text
    from runtime.hosts.triton.repository import _types

    spec = EngineSpec.from_json(sidecar_path(EMBEDDED).read_text(), "tiny")
    spec = replace(spec, head="labels", batch=None, words=("sky", "tree"), grid=32)
    message = graph_config("words", spec, _types(spec), device="auto", most=8, parameters={})
    found = tensors(text_format.Parse(to_text(message), protobuf.ModelConfig()).output, protobuf)
    assert found["labels"] == ("TYPE_INT32", [256, 256]) and found["words_32x32"] == ("TYPE_FP32", [2, 32, 32])


def test_a_model_beside_others(call, tmp_path):
    engine = write_uniform_engine(tmp_path / "maps.onnx")
    (tmp_path / "models" / "other" / "1").mkdir(parents=True)
    (tmp_path / "models" / "maps").mkdir()  # an empty folder is no model
    assert call(engine)[0] == 0
    status, lines, _ = call(engine)
    assert (status, len(lines)) == (1, 1)
    assert "maps: exists and is not an empty folder; move it away, or choose another place" in lines[0]
    assert call(engine, "--name", "second")[0] == 0
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["maps", "other", "second"]


BAD = {
    "missing": (lambda folder: folder / "none.onnx", [], "no engine"),
    "foreign": (lambda folder: foreign(folder), [], "is not an engine"),
    "no onnx": (lambda folder: filled(folder / "text.onnx"), [], "is not an ONNX file"),
    "folder": (lambda folder: folder, [], "expected an engine that ends in .onnx, .plan"),
    "no sidecar": (lambda folder: filled(folder / "a.plan"), [], "has no sidecar"),
    "other plan": (lambda folder: damaged(folder), [], "is damaged, or its sidecar belongs to another plan"),
    "no batches": (lambda folder: write_labels_engine(folder / "a.onnx", 1), ["--max-batch", "4"], "exactly 1 at once"),
    "maps": (lambda folder: write_uniform_engine(folder / "a.onnx"), ["--backend", "onnxruntime"], "head attention"),
    "other": (lambda folder: write_labels_engine(folder / "a.onnx"), ["--backend", "tensorrt"], "for the backend onnx"),
    "rtx": (
        lambda folder: write_plan(folder, head="labels", flavour="tensorrt_rtx"),
        ["--backend", "tensorrt"],
        "it is a plan of TensorRT-RTX; leave --backend out",
    ),
    "refine": (
        lambda folder: write_labels_engine(folder / "a.onnx"),
        ["--backend", "onnxruntime", "--refine", "snap"],
        "--refine, --min-area, --pieces split or unlike, and --threshold auto need the runtime",
    ),
    "own thresholds": (
        lambda folder: write_plan(folder, head="labels", types=TYPES),
        ["--threshold", "0.5"],
        "brings its own thresholds",
    ),
    "backend": ("tiny", ["--backend", "caffe"], "expected one of auto, python, onnxruntime, tensorrt"),
    "threshold": ("tiny", ["--threshold", "warm"], "--threshold: expected a number above 0"),
    "area": ("tiny", ["--min-area", "-1"], "--min-area: expected a share"),
    "threads": ("tiny", ["--threads", "0"], "--threads: expected a whole number"),
    "device": ("tiny", ["--device", "tpu"], "unknown device 'tpu'"),
    "name": ("tiny", ["--name", "../up"], "--name: expected letters"),
    "no frames": (lambda folder: write_uniform_engine(folder / "a.onnx"), ["--max-batch", "0"], "expected 1 or more"),
    "cores": (lambda folder: write_plan(folder), ["--threads", "2"], "--threads: are those of a CPU"),
    "cpu": (lambda folder: write_plan(folder), ["--device", "cpu"], "--device: a plan runs on GPUs only"),
}


def filled(path):
    path.write_bytes(b"hello")
    return path


def foreign(folder):
    graph = onnx.parser.parse_graph("g (float[1] x) => (float[1] y) { y = Identity(x) }")
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "foreign.onnx"
    )
    return folder / "foreign.onnx"


def damaged(folder):
    plan = write_plan(folder)
    plan.write_bytes(plan.read_bytes()[::-1])
    return plan


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(call, tmp_path, case, embedded_stays_open):
    engine, options, text = BAD[case]
    (tmp_path / "in").mkdir()
    status, lines, stdout = call(engine if isinstance(engine, str) else engine(tmp_path / "in"), *options)
    assert (status, len(lines), stdout) == (1, 1, ""), lines
    assert lines[0].startswith("error: ") and text in lines[0]
    assert not (tmp_path / "models").exists()


def test_a_place_that_cannot_be_written(call, tmp_path):
    engine = write_uniform_engine(tmp_path / "maps.onnx")
    (tmp_path / "models").write_bytes(b"")
    status, lines, _ = call(engine)
    assert (status, len(lines)) == (1, 1) and "a file is where a folder is expected" in lines[0]
    (tmp_path / "models").unlink()
    engine = write_labels_engine(tmp_path / "in.onnx")
    with small_disk(most=500):
        status, lines, _ = call(engine)
    assert (status, len(lines)) == (1, 1) and "cannot read or write" in lines[0], lines
    assert not (tmp_path / "models").exists()


def test_text_format(protobuf):
    """Names and texts that need escapes are read back as they were."""
    from google.protobuf import text_format

    from runtime.hosts.triton.pbtxt import Word, to_text

    text = 'a "quoted" \\ name\n\tÄ☃'
    message = {"name": text, "max_batch_size": 3, "input": [{"data_type": Word("TYPE_FP16"), "dims": [1, -1]}]}
    found = text_format.Parse(to_text(message), protobuf.ModelConfig())
    assert (found.name, found.max_batch_size, list(found.input[0].dims)) == (text, 3, [1, -1])


@pytest.mark.parametrize(
    ("backend", "weights"),
    [
        *(("python", name) for name in ("model.py", "openvino.PY", "sub/x.so.1")),
        *(("onnxruntime", name) for name in ("./model.onnx", "libtriton_onnxruntime.so")),
    ],
)
def test_weights_are_no_program_and_no_other_file(tmp_path, backend, weights):
    (tmp_path / "sub").mkdir()
    engine = write_labels_engine(tmp_path / "e.onnx", weights="weights")
    model = onnx.load(engine, load_external_data=False)
    (entry,) = (each for each in model.graph.initializer[1].external_data if each.key == "location")
    entry.value = weights
    engine.write_bytes(model.SerializeToString())
    (tmp_path / "weights").rename(tmp_path / weights)
    asked = [str(engine), "--output", str(tmp_path / "models"), "--backend", backend, "--pieces", "keep"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 1 and "would take for another file or for a program" in done.output, done.output
    assert not (tmp_path / "models").exists()

"""Engines for other programs: labels without PyTorch, the C header, and what nvinfer of DeepStream runs."""

import configparser
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from runtime import DiffSegError, Segmenter
from runtime.engine.inputs import find_input
from runtime.engine.onnx_file import onnx_metadata, read_engine
from runtime.engine.registry import EMBEDDED, open_engine
from runtime.engine.spec import METADATA_KEY, EngineSpec, sidecar_path
from runtime.hosts.engine.__main__ import app
from runtime.hosts.engine.graph import Graph
from runtime.hosts.engine.header import header
from runtime.hosts.engine.labels import MERGE, write_labels_engine
from runtime.hosts.engine.nvinfer import LABELS, write_nvinfer
from runtime.merge.segment import segment_attention
from runtime.pyramid.config import MergeConfig
from tests.runtime import bands
from tests.runtime.merge.plain import random_pyramid

TINY = EngineSpec.from_json(sidecar_path(EMBEDDED).read_text(), "tiny")
GRIDS = [(level.height, level.width) for level in TINY.levels]

# Keys of the group [property] that Gst-nvinfer documents and that a model of any kind may have; of those with few
# values, these. https://docs.nvidia.com/metropolis/deepstream/dev-guide/text/DS_plugin_gst-nvinfer.html
NVINFER = {
    "gpu-id": None,
    "gie-unique-id": None,
    "process-mode": {"1", "2"},
    "interval": None,
    "onnx-file": None,
    "model-engine-file": None,
    "batch-size": None,
    "network-mode": {"0", "1", "2"},
    "network-type": {"0", "1", "2", "3", "100"},
    "network-input-order": {"0", "1"},
    "infer-dims": None,
    "model-color-format": {"0", "1", "2"},
    "net-scale-factor": None,
    "offsets": None,
    "maintain-aspect-ratio": {"0", "1"},
    "symmetric-padding": {"0", "1"},
    "scaling-filter": None,
    "output-blob-names": None,
    "output-tensor-meta": {"0", "1"},
    "workspace-size": None,
}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_maps(path, pyramid, **fields):
    """An engine of tiny's shape that gives these maps, whatever the frame."""
    spec = replace(TINY, **fields)
    outputs = [
        helper.make_tensor_value_info(level.output, TensorProto.FLOAT, [1, *maps.shape])
        for level, maps in zip(spec.levels, pyramid, strict=True)
    ]
    nodes = [helper.make_node("Identity", [f"map_{each.name}"], [each.name]) for each in outputs]
    tensors = [
        onnx.numpy_helper.from_array(maps[None].astype(np.float32), f"map_{each.name}")
        for each, maps in zip(outputs, pyramid, strict=True)
    ]
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, 256, 256, 3])
    graph = helper.make_graph(nodes, "g", [frame], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A labels engine of maps that are known, and these."""
    folder = tmp_path_factory.mktemp("engines")
    pyramid = random_pyramid(np.random.default_rng(3), GRIDS)
    (path, *_) = write_labels_engine(write_maps(folder / "maps.onnx", pyramid), folder / "out")
    return path, pyramid


def test_labels_are_those_of_the_merge(made):
    path, pyramid = made
    assert path.name == "maps-labels.onnx" and sorted(file.name for file in path.parent.iterdir()) == [
        "maps-labels.h",
        "maps-labels.onnx",
        "maps-labels.onnx.json",
    ]
    engine = open_engine(path, "cpu", "onnxruntime")
    assert engine.spec == replace(TINY, head="labels", auto=False) and engine.spec.outputs == ("labels", "segments")
    frames = np.zeros((1, 256, 256, 3), np.uint8)
    for thresholds in ((0.5, 0.5, 0.5), (0.2, 0.4, 0.3)):
        found, segments = engine.infer(frames, thresholds)
        expected = segment_attention(pyramid, MergeConfig(thresholds), size=(256, 256), grids=GRIDS)
        assert len(np.unique(expected)) > 4 and (found[0] != expected).mean() <= 0.001
        assert segments[0] > expected.max()
    assert Segmenter(engine)(np.zeros((40, 60, 3), np.uint8)).labels.shape == (40, 60)


def test_the_shipped_merge_is_for_the_shipped_engine(tmp_path):
    """Of tiny's shape, so that the labels engine can be made whatever the weights are; and both are small."""
    result = run("labels", "--output", tmp_path / "new" / "folder")
    assert result.exit_code == 0, result.stderr
    path = tmp_path / "new" / "folder" / "tiny-labels.onnx"
    assert result.stdout.split() == [str(path), f"{path}.json", str(path.with_suffix(".h"))]
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [each.name for each in model.graph.input] == ["frame", "thresholds"]
    assert [each.name for each in model.graph.output] == ["labels", "segments"]
    assert EngineSpec.from_json(sidecar_path(path).read_text(), "x") == read_engine(path)
    own = {tensor.name: tensor.SerializeToString() for tensor in onnx.load(EMBEDDED).graph.initializer}
    found = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}
    assert own.items() <= found.items() and all(name.startswith("merge.") for name in found.keys() - own.keys())
    assert EMBEDDED.stat().st_size + MERGE.stat().st_size <= 15e6


@pytest.mark.parametrize("layout", ["float-nchw-rgb", "float-nchw-rgb-unit"])
def test_it_may_take_planes_of_float(tmp_path, layout):
    """What the graph computes of them is exactly what it computes of the same frame in uint8."""
    engine = bands.write_engine(tmp_path / "bands.onnx")
    graph, frames = Graph(engine), np.random.default_rng(1).integers(0, 256, (2, *bands.SIZE, 3), np.uint8)
    taken = find_input(layout)
    graph.take_planes("frame", taken.shape(2, *bands.SIZE), taken.brightest)
    (tmp_path / "planes.onnx").write_bytes(graph.to_bytes(None))
    onnx.checker.check_model(onnx.load(tmp_path / "planes.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "planes.onnx")
    given = {"frame": taken.convert(frames), "thresholds": np.ones(3, np.float32)}
    for found, expected in zip(
        session.run(None, given), open_engine(engine, "cpu", "onnxruntime").infer(frames), strict=True
    ):
        assert np.array_equal(found, expected)
    result = run("labels", "--output", tmp_path / "out", "--input", layout)
    assert result.exit_code == 0, result.stderr
    made = tmp_path / "out" / "tiny-labels.onnx"
    assert read_engine(made).input == layout and "float [batch][3][256][256]" in made.with_suffix(".h").read_text()
    result = run("nvinfer", made, "--output", tmp_path / "n.txt")
    assert result.exit_code == 0 and "infer-dims=3;256;256" in (tmp_path / "n.txt").read_text()
    for wrong, message in (("float", "--input: expected uint8-nhwc-bgr, float"), ("uint8-nhwc-bgr", None)):
        result = run("labels", "--output", tmp_path / "again", "--input", wrong)
        assert (result.exit_code == 0) == (message is None) and (message or "") in result.stderr


@pytest.mark.slow
def test_labels_of_a_picture_are_those_of_the_embedded_engine(tmp_path, embedded_engines):
    import skimage.data

    frame = np.ascontiguousarray(skimage.data.astronaut()[..., ::-1])
    (path, *_) = write_labels_engine(EMBEDDED, tmp_path)
    maps = Segmenter(embedded_engines("cpu", "onnxruntime", ()).clone())
    expected, found = maps(frame), Segmenter(open_engine(path, "cpu", "onnxruntime"))(frame)
    assert expected.count == found.count > 4 and (expected.labels != found.labels).mean() <= 0.001


@pytest.mark.proof
def test_the_shipped_merge_is_what_the_export_traces(tmp_path):
    from tools.tiny.merge import merge

    merge(EMBEDDED, tmp_path / "again.onnx")
    shipped, again = (onnx.load(path).graph for path in (MERGE, tmp_path / "again.onnx"))
    assert [node.op_type for node in shipped.node] == [node.op_type for node in again.node]
    assert [t.SerializeToString() for t in shipped.initializer] == [t.SerializeToString() for t in again.initializer]


@pytest.mark.proof
@pytest.mark.parametrize("layout", ["uint8-nhwc-bgr", "float-nchw-rgb", "float-nchw-rgb-unit"])
def test_labels_are_those_that_the_export_gives(least_pipeline, tmp_path, layout):
    """Both heads, through the export's own check, in every layout of the frame; and the head made without PyTorch."""
    from export.check.maps import random_frame
    from export.engine import ExportRequest, export_engine
    from export.parity import check_engine
    from tools.tiny.merge import merge

    for head in ("attention", "labels"):
        request = ExportRequest(
            model=str(least_pipeline), size=(16, 32), head=head, thresholds=(0.3, 0.3), grid=4, input=layout
        )
        assert all(check.passed for check in export_engine(request, tmp_path / f"{head}.onnx").checks)
    merge(tmp_path / "attention.onnx", tmp_path / "merge.onnx")
    (made, *_) = write_labels_engine(tmp_path / "attention.onnx", tmp_path, tmp_path / "merge.onnx")
    assert all(check.passed for check in check_engine(made, str(least_pipeline)))
    frames = random_frame(16, 32)[None]
    for thresholds in (None, (2.0, 1.0)):
        exported, ours = (
            open_engine(path, "cpu", "onnxruntime").infer(frames, thresholds)
            for path in (tmp_path / "labels.onnx", made)
        )
        assert exported[1] > 1 and all(np.array_equal(*pair) for pair in zip(exported, ours, strict=True))


def test_engines_of_another_shape_are_refused(tmp_path, made):
    path, pyramid = made
    cut, other, outside = tmp_path / "cut.onnx", tmp_path / "other.onnx", tmp_path / "outside.onnx"
    cut.write_bytes(path.read_bytes()[:9000])
    write_maps(other, pyramid, grid=12)
    model = onnx.load(write_maps(outside, pyramid))
    onnx.save_model(model, outside, save_as_external_data=True, location="outside.data", size_threshold=0)
    for engine, message in (
        (path, "expected an engine with the head attention, found labels"),
        (other, "expected the grid 16, as the embedded engine has, found 12; export the model again with 'python -m"),
        (outside, "has its weights in another file"),
        (cut, "is not an engine"),
        (tmp_path / "none.onnx", "no engine"),
        (tmp_path, "is a folder"),
    ):
        result = run("labels", engine, "--output", tmp_path / "out")
        assert result.exit_code == 1 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "out").exists() and run("labels").exit_code == 2
    result = run("labels", "--output", path)
    assert result.exit_code == 1 and "cannot read or write" in result.stderr


@pytest.mark.parametrize("layout", ["uint8-nhwc-bgr", "float-nchw-rgb-unit"])
def test_the_header_is_c_and_cpp(tmp_path, layout):
    spec = replace(TINY, head="labels", input=layout, batch=None, grid=20)
    text = header(spec, "4 tiny-labels.onnx")
    expected = {
        "uint8-nhwc-bgr": "uint8_t [batch][256][256][3], 0 to 255",
        "float-nchw-rgb-unit": "float [batch][3][256][256], 0 to 1,",
    }
    assert (
        expected[layout] in text and "int32_t [batch][256][256]" in text and "engine_4_tiny_labels_height = 256" in text
    )
    (tmp_path / "it.h").write_text(text)
    use = '#include "it.h"\nint main(void) { return engine_4_tiny_labels_default_thresholds[0] != 0.5f; }\n'
    for compiler, suffix, standard in (("cc", "c", "c99"), ("c++", "cpp", "c++17")):
        if not shutil.which(compiler):
            continue
        source = tmp_path / f"use.{suffix}"
        source.write_text(use)
        command = [
            compiler,
            f"-std={standard}",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-pedantic",
            "-fsyntax-only",
            str(source),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("layout", "scale"), [("float-nchw-rgb", 1), ("float-nchw-rgb-unit", 1 / 255)])
def test_nvinfer_feeds_the_engine_as_its_configuration_says(tmp_path, layout, scale):
    engine = bands.write_engine(tmp_path / "bands.onnx", layout=layout)
    result = run("nvinfer", engine, "--output", tmp_path / "nvinfer.txt", "--threshold", "0.7")
    assert result.exit_code == 0 and result.stdout.split() == [
        str(tmp_path / f"nvinfer.{end}") for end in ("txt", "onnx")
    ]
    config = configparser.ConfigParser(interpolation=None)
    config.read(tmp_path / "nvinfer.txt")
    assert config.sections() == ["property"]
    asked = dict(config["property"])
    assert asked.keys() <= NVINFER.keys()
    assert all(NVINFER[key] is None or value in NVINFER[key] for key, value in asked.items())
    assert (asked["network-type"], asked["output-tensor-meta"], asked["model-color-format"]) == ("100", "1", "0")
    # What nvinfer does: scale × (pixel − offset), RGB, planar; one input; one output, of a type that it has.
    height, width = bands.SIZE
    assert asked["infer-dims"] == f"3;{height};{width}" and asked["offsets"] == "0;0;0"
    assert float(asked["net-scale-factor"]) == pytest.approx(scale, rel=1e-7)
    session = onnxruntime.InferenceSession(tmp_path / asked["onnx-file"])
    assert [each.name for each in session.get_inputs()] == ["frame"]
    assert [(each.name, each.type) for each in session.get_outputs()] == [(asked["output-blob-names"], "tensor(int32)")]
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    fed = (frames[..., ::-1].transpose(0, 3, 1, 2) * np.float32(asked["net-scale-factor"])).astype(np.float32)
    (found,) = session.run([LABELS], {"frame": fed})
    assert np.array_equal(found, open_engine(engine, "cpu", "onnxruntime").infer(frames)[0])
    onnx.checker.check_model(onnx.load(tmp_path / "nvinfer.onnx"))
    assert METADATA_KEY not in onnx_metadata(tmp_path / "nvinfer.onnx")


def test_tensorrt_parses_what_nvinfer_runs(tmp_path):
    """nvinfer gives TensorRT the model, which takes uint8 only at a graph's edge."""
    trt = pytest.importorskip("tensorrt_rtx")
    write_nvinfer(bands.write_engine(tmp_path / "bands.onnx", layout="float-nchw-rgb"), tmp_path / "n.txt")
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(tmp_path / "n.onnx")), parser.get_error(0).desc()
    assert (network.num_inputs, network.num_outputs) == (1, 1)
    assert network.get_output(0).dtype == trt.int32 and network.get_output(0).name == LABELS


def test_thresholds_are_constants_of_nvinfers_model(tmp_path, made):
    """They decide the labels, and nvinfer feeds one input alone."""
    path, pyramid = made
    spec = replace(read_engine(path), input="float-nchw-rgb")  # these maps do not depend on the frame
    model = onnx.load(path)
    frame = helper.make_tensor_value_info("frame", TensorProto.FLOAT, [1, 3, 256, 256])
    model.graph.input[0].CopyFrom(frame)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.save(model, tmp_path / "planar.onnx")
    thresholds = (0.2, 0.4, 0.3)
    write_nvinfer(tmp_path / "planar.onnx", tmp_path / "n.txt", thresholds)
    session = onnxruntime.InferenceSession(tmp_path / "n.onnx")
    (found,) = session.run(None, {"frame": np.zeros((1, 3, 256, 256), np.float32)})
    expected = segment_attention(pyramid, MergeConfig(thresholds), size=(256, 256), grids=GRIDS)
    assert (found[0] != expected).mean() <= 0.001


def test_what_nvinfer_cannot_run_is_refused(tmp_path):
    planar = bands.write_engine(tmp_path / "planar.onnx", layout="float-nchw-rgb")
    plain = bands.write_engine(tmp_path / "plain.onnx")
    for arguments, code, message in (
        ((plain, "--output", "x.txt"), 1, "found frames uint8 [B, H, W, 3] BGR, 0 to 255; 'python -m export MODEL"),
        ((EMBEDDED, "--output", "x.txt"), 1, "found the head attention"),
        ((planar, "--output", tmp_path / "planar.txt"), 1, "its model would replace the engine"),
        ((planar, "--output", "x.onnx"), 2, "expected the name of a configuration, such as x.txt"),
        ((planar, "--output", "x.ONNX"), 2, "expected the name of a configuration, such as x.txt"),
        ((planar, "--output", tmp_path), 2, f"expected the name of a configuration, such as {tmp_path}.txt"),
        ((planar, "--output", "x.txt", "--threshold", "1,2"), 1, "--threshold: expected one, or one for each of 3"),
        ((planar, "--output", "x.txt", "--threshold", "auto"), 2, "--threshold: expected numbers with commas"),
        ((planar, "--output", "x.txt", "--threshold", "0"), 1, "--threshold: expected one finite number above 0"),
        ((tmp_path / "none.onnx", "--output", "x.txt"), 1, "no engine"),
    ):
        result = run("nvinfer", *arguments)
        assert result.exit_code == code and message in result.stderr and result.stderr.count("\n") == 1, result.stderr
    with pytest.raises(DiffSegError, match="found the precision bf16"):
        model = onnx.load(planar)
        spec = replace(read_engine(planar), precision="bf16")
        helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
        onnx.save(model, planar)
        write_nvinfer(planar, tmp_path / "x.txt")
    assert not (tmp_path / "x.txt").exists()

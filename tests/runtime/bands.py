"""An engine with the head labels whose segments are bands of brightness: made without a network."""

from dataclasses import replace

import onnx
from onnx import TensorProto, helper

from runtime.engine.registry import EMBEDDED
from runtime.engine.spec import METADATA_KEY, EngineSpec, Level, sidecar_path

SIZE = (32, 48)


def write_engine(path, bands=4, layout="uint8-nhwc-bgr"):
    """Write an engine for any number of frames of SIZE, which takes them in this layout; returns `path`."""
    spec = replace(
        EngineSpec.from_json(sidecar_path(EMBEDDED).read_text(), "tiny"),
        **{
            "head": "labels",
            "height": SIZE[0],
            "width": SIZE[1],
            "batch": None,
            "grid": 4,
            "levels": (Level(4, 6, 1),),
        },
        input=layout,
        auto=False,
    )
    frame_input = spec.frame_input
    kind = TensorProto.FLOAT if frame_input.planar else TensorProto.UINT8
    nodes = [
        helper.make_node("Cast", ["frame"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "channels"], ["grey"], keepdims=0),
        helper.make_node("Mul", ["grey", "scale"], ["multiples"]),
        helper.make_node("Add", ["multiples", "little"], ["shares"]),
        helper.make_node("Cast", ["shares"], ["labels"], to=TensorProto.UINT8),
        helper.make_node("Shape", ["frame"], ["batch"], start=0, end=1),
        helper.make_node("Expand", ["bands", "batch"], ["segments"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("frame", kind, ["batch", *frame_input.shape(None, *SIZE)[1:]]),
            helper.make_tensor_value_info("thresholds", TensorProto.FLOAT, [len(spec.thresholds)]),
        ],
        [
            helper.make_tensor_value_info("labels", TensorProto.UINT8, ["batch", *SIZE]),
            helper.make_tensor_value_info("segments", TensorProto.INT32, ["batch"]),
        ],
        [
            helper.make_tensor("channels", TensorProto.INT64, [1], [1 if frame_input.planar else 3]),
            helper.make_tensor("scale", TensorProto.FLOAT, [], [bands / 256 * 255 / frame_input.brightest]),
            helper.make_tensor("little", TensorProto.FLOAT, [], [1e-3]),  # no pixel is exactly between two bands
            helper.make_tensor("bands", TensorProto.INT32, [1], [bands]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.save(model, path)
    return path

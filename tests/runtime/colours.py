"""An engine with the head features whose features are mean colours: made without a network."""

from dataclasses import replace

import onnx
from onnx import TensorProto, helper

from runtime.engine.registry import EMBEDDED
from runtime.engine.spec import METADATA_KEY, EngineSpec, Level, sidecar_path

CELL = 8  # pixels of a token's side


def write_engine(path, grid, layout="uint8-nhwc-bgr"):
    """Write an engine of `grid` (h, w) tokens, for any number of frames of 8 times that size; returns `path`.

    `layout`: of its input; the features are BGR, 0 to 255, whatever it is.
    """
    size = (CELL * grid[0], CELL * grid[1])
    spec = replace(
        EngineSpec.from_json(sidecar_path(EMBEDDED).read_text(), "tiny"),
        **{"head": "features", "height": size[0], "width": size[1], "batch": None, "grid": 8, "solver": "ncut"},
        **{"levels": (Level(*grid, 1),), "channels": 3, "timestep": 50, "noise_seed": 0},
        input=layout,
        auto=False,
    )
    frame_input = spec.frame_input
    uint8 = [
        helper.make_node("Cast", ["frame"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
    ]
    planar = [
        helper.make_node("Mul", ["frame", "scale"], ["pixels"]),
        helper.make_node("Gather", ["pixels", "backwards"], ["planes"], axis=1),
    ]
    nodes = [
        *(planar if frame_input.planar else uint8),
        helper.make_node("AveragePool", ["planes"], ["cells"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Reshape", ["cells", "shape"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["features"], perm=[0, 2, 1]),
    ]
    kind = TensorProto.FLOAT if frame_input.planar else TensorProto.UINT8
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("frame", kind, ["batch", *frame_input.shape(None, *size)[1:]])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", grid[0] * grid[1], 3])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [3], [0, 3, -1]),
            helper.make_tensor("scale", TensorProto.FLOAT, [], [255 / frame_input.brightest]),
            helper.make_tensor("backwards", TensorProto.INT64, [3], [2, 1, 0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.save(model, path)
    return path

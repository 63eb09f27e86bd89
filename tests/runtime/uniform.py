"""An engine that sees nothing and opens in no time: for tests of what is around an engine."""

import onnx
from onnx import TensorProto, helper

from runtime.engine.registry import EMBEDDED
from runtime.engine.spec import METADATA_KEY, EngineSpec, sidecar_path


def write_uniform_engine(path):
    """An engine that says of itself what the embedded one says, and gives uniform maps; with its sidecar."""
    text = sidecar_path(EMBEDDED).read_text()
    spec = EngineSpec.from_json(text, "tiny")
    nodes, shapes, outputs = [], [], []
    for level in spec.levels:
        pixels = level.height * level.width
        value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1 / pixels])
        nodes.append(helper.make_node("ConstantOfShape", [f"shape_{pixels}"], [level.output], value=value))
        shapes.append(helper.make_tensor(f"shape_{pixels}", TensorProto.INT64, [3], [1, pixels, pixels]))
        outputs.append(helper.make_tensor_value_info(level.output, TensorProto.FLOAT, [1, pixels, pixels]))
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, spec.height, spec.width, 3])
    graph = helper.make_graph(nodes, "g", [frame], outputs, shapes)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.save(model, path)
    sidecar_path(path).write_text(text)
    return path

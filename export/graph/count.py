"""Parameters and floating-point operations of a network, before the export and in the exported graph."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir
    import torch

    from export.graph.network import UNetPass


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs.

    `parameters`: how many numbers are stored. `flops`: operations of convolutions and matrix products for one frame; a
    multiplication and an addition count as two.
    """

    parameters: int
    flops: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.1f} M parameters, {self.flops / 1e9:.1f} GFLOP a frame"


def network_cost(
    network: "UNetPass", height: int, width: int, run: "Callable[[torch.Tensor], object] | None" = None
) -> Cost:
    """Cost of a torch network for one frame of [height, width]; it runs on shapes only.

    `run`: in place of the network itself, what is run to count the operations.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from export.graph.network import black_frames

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), FlopCounterMode(display=False) as counter:
        (run or network)(black_frames(network.frame_input, height, width))
    return Cost(sum(p.numel() for p in network.parameters()), counter.get_total_flops())


def graph_cost(model: "onnx_ir.Model", batch: int) -> Cost:
    """Cost per frame of an ONNX graph with known shapes for `batch` frames (a dynamic batch counts as 1)."""
    parameters = sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value)
    flops = 0
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm"):
            inner = _shape(node.inputs[0])[-1]
        elif node.op_type == "Conv":
            inner = _size(_shape(node.inputs[1])[1:])
        else:
            continue
        flops += 2 * inner * _size(_shape(node.outputs[0]))
    return Cost(parameters, flops // batch)


def _shape(value: "onnx_ir.Value | None") -> list[int]:
    if value is None or value.shape is None:
        return []
    return [dim if isinstance(dim, int) else 1 for dim in value.shape]


def _size(shape: list[int]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size

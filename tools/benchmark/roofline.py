"""`python -m tools.benchmark roofline`: the frame rate that a card's limits allow an engine.

Arithmetic and bytes are counted from the network's shapes, without weights; nothing is measured. Every operation
takes at least its arithmetic at the card's peak, or its bytes at the card's bandwidth, whichever is longer.
Convolutions, matrix products, attention and softmax are counted; everything elementwise between them counts as free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.benchmark.native import CARDS, Card, count, least_milliseconds

if TYPE_CHECKING:
    from torch import nn

Operation = tuple[float, float, bool]  # floating-point operations, bytes, and whether in half precision


@dataclass(frozen=True, slots=True)
class Configuration:
    """An export. `family`: of `tools.tiny.random_pipelines`, with settings of its `unet` that differ.

    `size`: side of the frame. `tiny_vae`: TAESD's encoder.
    """

    name: str
    family: str = "sd15"
    size: int = 512
    precision: str = "fp16"
    tiny_vae: bool = False
    blocks: tuple[str, ...] = ("down", "mid", "up")
    unet: tuple[tuple[str, Any], ...] = ()


CONFIGURATIONS = (
    Configuration("SD 1.5, 512, fp32", precision="fp32"),
    Configuration("SD 1.5, 512, fp16"),
    Configuration("SD 1.5, 512, fp16, TAESD", tiny_vae=True),
    Configuration("SD 1.5, 512, fp16, TAESD, `--attention down`", tiny_vae=True, blocks=("down",)),
    Configuration("SD 1.5, 384, fp16, TAESD", size=384, tiny_vae=True),
    Configuration("SD 1.5, 256, fp16, TAESD", size=256, tiny_vae=True),
    Configuration(
        "BK-SDM-Small, 512, fp16, TAESD", tiny_vae=True, unet=(("mid_block_type", None), ("layers_per_block", 1))
    ),
)


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one frame.

    `operations`: of the network, one by one; `weights`: their bytes; `sides`: of the maps, finest first.
    """

    operations: tuple[Operation, ...]
    weights: int
    sides: tuple[int, ...]

    @property
    def flops(self) -> float:
        """Floating-point operations of the network, a multiplication and an addition counted as two."""
        return sum(operation[0] for operation in self.operations)

    @property
    def bytes(self) -> float:
        """Bytes that the network's operations read and write."""
        return sum(operation[1] for operation in self.operations)

    def least_milliseconds(self, card: Card) -> float:
        """The least time of network and merge on a card: each operation is bound by its arithmetic or its bytes."""
        merge = count(self.sides, labels=8 * self.sides[0], size=4).values()
        network = (
            max(flops / (card.half if half else card.operations), moved / card.bytes)
            for flops, moved, half in self.operations
        )
        return 1e3 * sum(network) + sum(least_milliseconds(stage, card) for stage in merge)


def count_work(configuration: Configuration) -> Work:
    """Count the work of an export's network, traced as the export does, on shapes without values."""
    import torch

    from export.graph.network import FrameToPyramid

    with torch.device("meta"), torch.no_grad():
        pipeline = _pipeline(configuration)
        network = FrameToPyramid(
            pipeline, 300, configuration.blocks, size=(configuration.size, configuration.size)
        ).eval()
        counter, last = _counter(network), 0
        add = network.collector.add_mean

        def note(maps: torch.Tensor) -> None:
            nonlocal last
            last = len(counter.found)
            add(maps)

        network.collector.add_mean = note  # type: ignore[method-assign]
        with counter:
            maps = network(torch.zeros(1, configuration.size, configuration.size, 3, dtype=torch.uint8))
        sides = tuple(round(level.shape[-1] ** 0.5) for level in maps)
        # The exported graph ends with the last map.
        weights = {identity: size for found in counter.weights[:last] for identity, size in found.items()}
        return Work(tuple(counter.found[:last]), sum(weights.values()), sides)


def _pipeline(configuration: Configuration) -> Any:
    """The family's modules without weights: made on torch's device `meta`."""
    import diffusers
    import torch

    from export.model.families import SD, SDXL
    from export.model.load import Pipeline, quiet_libraries
    from tools.tiny.random_pipelines import FAMILIES, TOKENS, default_dtype

    quiet_libraries()
    shape = FAMILIES[configuration.family]
    xl = len(shape.text) > 1
    with default_dtype(torch.float16 if configuration.precision == "fp16" else torch.float32):
        unet = diffusers.UNet2DConditionModel(**{**shape.unet, **dict(configuration.unet)})
        vae = diffusers.AutoencoderTiny() if configuration.tiny_vae else diffusers.AutoencoderKL(**shape.vae)
        vae.decoder = None
    return Pipeline(
        unet=unet,
        vae=vae,
        prompt_embedding=torch.zeros(1, TOKENS, unet.config.cross_attention_dim),
        pooled_embedding=torch.zeros(1, 1280) if xl else None,
        schedule=None,
        family=SDXL if xl else SD,
        source=configuration.name,
        revision=None,
    )


def _counter(network: nn.Module) -> Any:
    """A dispatch mode that records arithmetic, bytes and weights of every counted operation."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    sizes = {weight.untyped_storage()._cdata: weight.numel() * weight.element_size() for weight in network.parameters()}

    class Counter(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[Operation] = []
            self.weights: list[dict[int, int]] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            packet = function._overloadpacket
            softmax = packet is torch.ops.aten._softmax
            if packet in flop_registry or softmax:
                first = out[0] if isinstance(out, tuple) else out
                tensors = [value for value in (*args, first) if isinstance(value, torch.Tensor)]
                moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
                flops = 0 if softmax else flop_registry[packet](*args, **(kwargs or {}), out_val=out)
                # By their storage: a product takes a transposed view of a weight.
                storages = [value.untyped_storage()._cdata for value in tensors]
                self.weights.append({storage: sizes[storage] for storage in storages if storage in sizes})
                self.found.append((float(flops), float(moved), tensors[0].dtype != torch.float32))
            return out

    return Counter()


def rows(configurations: Sequence[Configuration] = CONFIGURATIONS) -> list[tuple[str, ...]]:
    """Cells of the table: configuration, GFLOP, weights in MB, GB moved, and frames per second on every card."""
    table = []
    for configuration in configurations:
        work = count_work(configuration)
        rates = (f"{float(f'{1e3 / work.least_milliseconds(card):.3g}'):g}" for card in CARDS.values())
        figures = f"{work.flops / 1e9:.0f}", f"{work.weights / 1e6:.0f}", f"{work.bytes / 1e9:.1f}"
        table.append((configuration.name, *figures, *rates))
    return table


def roofline(
    only: Annotated[str, typer.Option(help="Only configurations with this text in their name.")] = "",
) -> None:
    """Frames a second that the limits of four cards allow: the table of export/README.md, counted, not measured."""
    chosen = [configuration for configuration in CONFIGURATIONS if only in configuration.name]
    head = ("engine", "GFLOP", "weights, MB", "moved, GB", *(f"{name}, frames/s" for name in CARDS))
    for cells in (head, ("---", *["---:"] * (len(head) - 1)), *rows(chosen)):
        print(f"| {' | '.join(cells)} |")

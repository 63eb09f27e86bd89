"""Frame → features as one torch module: what the deepest self-attention on the way down gives.

These are the features that Couairon et al. cut in "DiffCut" (NeurIPS 2024), section 4.1.
"""

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from export.graph.attention import expose_attention, grid_of
from export.graph.network import UNetPass, black_frames
from runtime.engine.inputs import DEFAULT_INPUT, FrameInput
from runtime.engine.spec import Level
from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from export.model.load import LoadedModel


class FrameToFeatures(UNetPass):
    """Frames, in the layout of `frame_input` → features float32 [B, n, C], one row per token, row-major.

    They are the output of the layer that `find_feature_block` names, and nothing that follows it runs. Takes the
    model's modules and rewrites them in place.
    """

    def __init__(
        self,
        model: "LoadedModel",
        timestep: int,
        *,
        size: tuple[int, int] | None = None,
        noise_seed: int | None = None,
        target: str = "gpu",
        frame_input: FrameInput = DEFAULT_INPUT,
    ) -> None:
        """Take the arguments of `export.graph.network.FrameToPyramid`.

        Raises DiffSegError for layers that cannot be rewritten, or where no block on the way down has self-attention.
        """
        super().__init__(model, timestep, size=size, noise_seed=noise_seed, frame_input=frame_input)
        expose_attention(self.unet, model.prompt_embedding, None, target)
        block = find_feature_block(self.unet, model.source)
        self._keeper = _Keeper()
        block.attn1 = _KeptOutput(block.attn1, self._keeper)

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        """frame: of `frame_input` → features float32 [B, n, C]."""
        self._keeper.stops = True
        with contextlib.suppress(_Kept):
            self.run(frame)
        self._keeper.stops = False
        return (self._keeper.take().float(),)


class _Kept(Exception):
    """The features are known, and the rest of the pass is not needed."""


class _Keeper:
    """Keeps one tensor of a pass. A plain object: torch.export refuses a module that changes while it is traced.

    Attributes:
        stops: whether the pass ends there.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.stops = False

    def take(self) -> Tensor:
        value, self.value = self.value, None
        assert value is not None
        return value


class _KeptOutput(nn.Module):
    """A layer whose output is also kept; the pass may end with it, by an exception."""

    def __init__(self, layer: nn.Module, keeper: _Keeper) -> None:
        super().__init__()
        self.layer, self._keeper = layer, keeper

    def forward(self, hidden_states: Tensor, **rest: Any) -> Tensor:
        """hidden_states [B, n, C] → [B, n, C]."""
        found: Tensor = self.layer(hidden_states, **rest)
        self._keeper.value = found
        if self._keeper.stops:
            raise _Kept
        return found


def find_feature_block(unet: Any, source: str) -> Any:
    """The transformer block whose self-attention `attn1` gives the features.

    It is the last one of the deepest block on the way down that has attention: of `down_blocks[-2]` in Stable Diffusion
    1.x and 2.x, of `down_blocks[-1]` in the shapes of Stable Diffusion XL. `source`: the model's name.
    Raises DiffSegError when no block on the way down has attention.
    """
    for down in reversed(unet.down_blocks):
        if getattr(down, "attentions", None):
            return down.attentions[-1].transformer_blocks[-1]
    raise DiffSegError(
        f"{source}: its U-Net has no self-attention on the way down, which gives the features; expected "
        "CrossAttnDownBlock2D among its down_block_types; choose --head attention"
    )


def feature_level(network: FrameToFeatures, height: int, width: int) -> tuple[Level, int]:
    """The grid of the features of a [height, width] frame, and their number of channels; shapes only."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        (features,) = network(black_frames(network.frame_input, height, width))
    _, tokens, channels = features.shape
    return Level(*grid_of(tokens, height, width), 1), channels

"""A second pass of the U-Net, with words in its prompt: latent → where each word is, by cross-attention."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from export.graph.attention import MapCollector, expose_attention, grid_of
from export.graph.conditioning import added_conditions, fold_timestep

if TYPE_CHECKING:
    from export.model.load import LoadedModel


class WordsPass(nn.Module):
    """Latents [B, C, h, w] → for each resolution, finest first, the words' maps float32 [B, words, h, w].

    A value is the probability with which a token of the picture attends to the word: the mean over heads, over the
    layers of the resolution, and over the word's tokens. It shares its weights with the model's own U-Net, so it must
    be made before that is rewritten, and the U-Net must be rewritten before this runs.
    """

    chosen: Tensor

    def __init__(
        self, model: "LoadedModel", timestep: int, blocks: Sequence[str], size: tuple[int, int], target: str = "gpu"
    ) -> None:
        """Arguments are those of `export.graph.network.FrameToPyramid`; the model has words."""
        super().__init__()
        assert model.words is not None
        self.size = size
        self.prompts = len(model.words.embeddings)
        self.collector = MapCollector(blocks)
        self.unet: nn.Module = share_weights(model.unet)
        self.register_buffer("chosen", model.words.selection()[:, None])
        with torch.no_grad():
            fold_timestep(self.unet, timestep, added_conditions(model, *size, model.words.pooled))
        for layer in self.unet.modules():
            if hasattr(layer, "to_q"):
                layer.scale = 1.0  # the shared queries are scaled once, by the first pass
        expose_attention(self.unet, model.words.embeddings, None, target, self.collector)

    def forward(self, latent: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        self.unet(latent.repeat(self.prompts, 1, 1, 1) if self.prompts > 1 else latent, 0, encoder_hidden_states=None)
        found = []
        for n, layers in sorted(self.collector.take().items(), reverse=True):
            tokens = sum(layers[1:], layers[0]) / len(layers)  # [prompts, B, tokens, n]
            found.append((self.chosen @ tokens).sum(dim=0).unflatten(-1, grid_of(n, *self.size)))
        return tuple(found)


def share_weights(unet: Any) -> Any:
    """A copy of a U-Net's modules on the same parameters and buffers."""
    kept: dict[int, Any] = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    return copy.deepcopy(unet, kept)

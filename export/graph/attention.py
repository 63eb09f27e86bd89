"""Attention layers rewritten for export: self-attention that exposes its map, cross-attention on a constant prompt."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from export.model.families import BLOCKS
from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

LARGE = 2048  # with more tokens, 64×64 for example, a CPU is faster when it computes one head after the other


class MapCollector:
    """Collects the self-attention maps of one forward pass, in order of execution.

    A plain object: torch.export refuses a module whose own dict or list attributes change while it is traced.
    """

    def __init__(self, blocks: Sequence[str] = BLOCKS) -> None:
        """`blocks`: the parts of the U-Net whose maps are kept."""
        self.blocks = tuple(blocks)
        self._maps: dict[int, list[Tensor]] = {}
        self.layers: dict[int, int] = {}

    def add(self, probabilities: Tensor) -> None:
        """Keep the mean over heads of `probabilities` [B, heads, n, n] as float32 [B, n, n]."""
        self.add_mean(probabilities.mean(dim=1, dtype=torch.float32))

    def add_mean(self, maps: Tensor) -> None:
        """Keep a mean over heads, float32 [B, n, n], or of cross-attention [P, B, tokens, n]."""
        self._maps.setdefault(maps.shape[-1], []).append(maps)

    def wants(self, layer: str) -> bool:
        """Whether the maps of a layer, given by its name in the U-Net, are kept."""
        return layer.split("_")[0] in self.blocks

    def take(self) -> dict[int, list[Tensor]]:
        """Return the maps [B, n, n] by their number of tokens n and forget them; `layers` keeps how many each n had."""
        maps, self._maps = self._maps, {}
        self.layers = {n: len(layers) for n, layers in maps.items()}
        return maps


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def shift_logits(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Add a channel to query and key [B, heads, n, d] that subtracts each token's logit with itself from its row.

    Adding a constant to a row does not change its softmax, so this is exact, and the rounding of that constant does
    not matter. The logits of a product are rounded to the layers' type: at values around 50, bfloat16 errs by 0.1.
    A token attends most to itself and to similar tokens, so the logits that matter are near 0 after the shift, where
    half precision is accurate. Zeros fill the channels up to a multiple of 8, which matrix units need.
    """
    itself = -(query * key).sum(dim=-1, keepdim=True)
    rest = -(query.shape[-1] + 1) % 8
    return (
        torch.cat([query, nn.functional.pad(itself, (0, rest))], dim=-1),
        torch.cat([key, nn.functional.pad(torch.ones_like(itself), (0, rest))], dim=-1),
    )


def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention on a scaled query: context [B, heads, n, d] and float32 probabilities [B, heads, n, m].

    The logits have the layers' own type (the query is scaled first, so that float16 does not overflow); the softmax
    is always float32.
    """
    probabilities = (query @ key.transpose(-1, -2)).float().softmax(dim=-1)
    return probabilities.to(value.dtype) @ value, probabilities


def attend_by_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Like `attend`, one head at a time: context [B, heads, n, d] and the mean map float32 [B, n, n].

    Each head's probabilities are used for the context and added to the mean while they are still in a CPU's cache.
    """
    found = [attend(query[:, h], key[:, h], value[:, h]) for h in range(query.shape[1])]
    context = torch.stack([context for context, _ in found], dim=1)
    return context, sum((maps for _, maps in found[1:]), found[0][1]) / len(found)


class ExposedSelfAttention(nn.Module):
    """diffusers' `Attention` (self-attention, no mask, no norms) that hands its map to a collector, if there is one.

    `target`: "cpu" computes large maps head by head, which is faster there; a GPU's compiler needs them whole.
    """

    def __init__(self, attention: "Attention", collector: MapCollector | None, target: str = "gpu") -> None:
        super().__init__()
        self.target = target
        self.heads: int = attention.heads
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.to_out = attention.to_out[0]
        self.collector = collector
        # Scaling the weights saves one pass over n × d per layer, and keeps float16 logits small.
        scale_linear(self.to_q, attention.scale)

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states [B, n, C] → [B, n, C]."""
        query, key, value = (
            _split_heads(linear(hidden_states), self.heads) for linear in (self.to_q, self.to_k, self.to_v)
        )
        query, key = shift_logits(query, key)
        if self.target == "cpu" and query.shape[2] >= LARGE:
            context, mean = attend_by_head(query, key, value)
            if self.collector is not None:
                self.collector.add_mean(mean)
        else:
            context, probabilities = attend(query, key, value)
            if self.collector is not None:
                self.collector.add(probabilities)
        return self.to_out(context.transpose(1, 2).flatten(2))


class PromptCrossAttention(nn.Module):
    """diffusers' cross-attention on fixed prompts: keys and values are constants of the graph."""

    key: Tensor
    value: Tensor

    def __init__(self, attention: "Attention", prompt: Tensor, collector: MapCollector | None = None) -> None:
        """`prompt`: [P, tokens, channels], P = 1 if several are not needed. `collector`: gets the map, if there is one.

        The pictures of each prompt come one after the other.
        """
        super().__init__()
        self.collector = collector
        self.heads: int = attention.heads
        self.to_q, self.to_out = attention.to_q, attention.to_out[0]
        with torch.no_grad():
            for name, linear in (("key", attention.to_k), ("value", attention.to_v)):
                # Computed in float32 and rounded once.
                bias = None if linear.bias is None else linear.bias.float()
                constant = nn.functional.linear(prompt.float(), linear.weight.float(), bias).to(linear.weight.dtype)
                self.register_buffer(name, _split_heads(constant, self.heads).clone())
        scale_linear(self.to_q, attention.scale)

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states [B, n, C] → [B, n, C]."""
        query = _split_heads(self.to_q(hidden_states), self.heads)
        if len(self.key) == 1 and self.collector is None:
            context, _probabilities = attend(query, self.key, self.value)
        else:  # [P, B, heads, n, d]
            prompts = query.unflatten(0, (len(self.key), -1))
            context, probabilities = attend(prompts, self.key[:, None], self.value[:, None])
            context = context.flatten(0, 1)
            if self.collector is not None:
                self.collector.add_mean(probabilities.mean(dim=2).transpose(-1, -2))
        return self.to_out(context.transpose(1, 2).flatten(2))


def scale_linear(linear: nn.Linear, scale: float) -> None:
    """Multiply a linear layer's output by `scale`, in place, through its weights."""
    with torch.no_grad():
        linear.weight.mul_(scale)
        if linear.bias is not None:
            linear.bias.mul_(scale)


def is_plain(attention: "Attention") -> bool:
    """Whether the rewritten layers compute the same as this one: it has no norms, residual or added keys of its own."""
    return (
        all(
            getattr(attention, name, None) is None
            for name in ("group_norm", "spatial_norm", "norm_q", "norm_k", "norm_cross", "add_k_proj")
        )
        and not attention.residual_connection
        and attention.rescale_output_factor == 1.0
    )


def expose_attention(
    unet: Any,
    prompt: Tensor,
    collector: MapCollector | None,
    target: str = "gpu",
    words: MapCollector | None = None,
) -> None:
    """Replace the attention layers of every transformer block.

    `prompt`: [P, tokens, channels]. `collector`, `words`: where the maps of self-attention and of cross-attention go.
    Raises DiffSegError for a layer that the rewritten ones do not replace.
    """
    for name, block in list(unet.named_modules()):
        if not hasattr(block, "attn1"):
            continue
        for attention in (block.attn1, block.attn2):
            if attention is not None and not is_plain(attention):
                raise DiffSegError(
                    f"the attention layer in {name} has norms or residuals of its own; supported: the plain "
                    "attention of Stable Diffusion"
                )
        if words is not None and block.attn2 is None:
            raise DiffSegError(f"--words: the block {name} has no cross-attention; leave that option out")
        kept, seen = (one if one is not None and one.wants(name) else None for one in (collector, words))
        block.attn1 = ExposedSelfAttention(block.attn1, kept, target)
        if block.attn2 is not None:
            block.attn2 = PromptCrossAttention(block.attn2, prompt, seen)


def grid_of(tokens: int, height: int, width: int) -> tuple[int, int]:
    """(h, w) of the tokens of a [height, width] frame: the grid has the frame's proportions."""
    h = round(math.sqrt(tokens * height / width))
    return h, tokens // h

"""Attention layers rewritten for export: self-attention that shows its map, cross-attention on a constant prompt."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention


BLOCKS = ("down", "mid", "up")  # of a U-Net, in order of execution
LARGE = 2048  # tokens from which a CPU gains by going through the heads one by one: 64×64 does


class MapCollector:
    """Receives the self-attention maps during one forward pass, in order of execution.

    A plain object: torch.export refuses a module whose own dict or list attributes change while it is traced.
    """

    def __init__(self, blocks: Sequence[str] = BLOCKS) -> None:
        """`blocks`: the parts of the U-Net whose maps are wanted; what only others need drops out of the graph."""
        self.blocks = tuple(blocks)
        self._maps: dict[int, list[Tensor]] = {}
        self.layers: dict[int, int] = {}

    def add(self, probabilities: Tensor) -> None:
        """Keep the mean over heads of `probabilities` [B, heads, n, n] as float32 [B, n, n]."""
        self.add_mean(probabilities.mean(dim=1, dtype=torch.float32))

    def add_mean(self, maps: Tensor) -> None:
        """Keep a mean over heads, float32 [B, n, n]."""
        self._maps.setdefault(maps.shape[-1], []).append(maps)

    def wants(self, layer: str) -> bool:
        """Whether the maps of a layer, by its name in the U-Net, are to be kept."""
        return layer.split("_")[0] in self.blocks

    def take(self) -> dict[int, list[Tensor]]:
        """Hand over the maps by token count n and forget them; `layers` keeps how many each n had."""
        maps, self._maps = self._maps, {}
        self.layers = {n: len(layers) for n, layers in maps.items()}
        return maps


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def shift_logits(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Add a channel to query and key [B, heads, n, d] that takes each token's logit with itself off its row.

    A softmax is the same under any shift of its row, so this is exact, and the rounding of the shift does not matter.
    But logits leave a product rounded to the layers' type: as whole numbers of some tens they err by 0.1 in bfloat16.
    A token attends most to itself and its like, so what is left of the logits that count is near 0, where half
    precision is fine. Zeros fill the channels up to a multiple of 8, as matrix units want them.
    """
    itself = -(query * key).sum(dim=-1, keepdim=True)
    rest = -(query.shape[-1] + 1) % 8
    return (
        torch.cat([query, nn.functional.pad(itself, (0, rest))], dim=-1),
        torch.cat([key, nn.functional.pad(torch.ones_like(itself), (0, rest))], dim=-1),
    )


def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention on an already scaled query: context [B, heads, n, d] and float32 probabilities [B, heads, n, m].

    The logits are of the layers' own type (scaling the query first keeps float16 from overflowing); the softmax
    is always float32 (DESIGN: precision).
    """
    probabilities = (query @ key.transpose(-1, -2)).float().softmax(dim=-1)
    return probabilities.to(value.dtype) @ value, probabilities


def attend_by_head(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """As `attend`, one head at a time: context, and the mean map float32 [B, n, n].

    Each head's probabilities are used for the context and added to the mean while a CPU's cache still has some of them.
    """
    found = [attend(query[:, h], key[:, h], value[:, h]) for h in range(query.shape[1])]
    context = torch.stack([context for context, _ in found], dim=1)
    return context, sum((maps for _, maps in found[1:]), found[0][1]) / len(found)


class ExposedSelfAttention(nn.Module):
    """diffusers' `Attention` (self-attention, no mask, no norms) that hands its map to a collector, if there is one.

    `target`: "cpu" goes through large maps head by head, which pays there; a GPU's compiler likes them whole.
    """

    def __init__(self, attention: "Attention", collector: MapCollector | None, target: str = "gpu") -> None:
        super().__init__()
        self.target = target
        self.heads: int = attention.heads
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.to_out = attention.to_out[0]
        self.collector = collector
        # The scale lives in the query's weights: one pass over n × d less per layer, and small float16 logits.
        scale_linear(self.to_q, attention.scale)

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states [B, n, C] → [B, n, C]."""
        query, key, value = (
            _split_heads(linear(hidden_states), self.heads) for linear in (self.to_q, self.to_k, self.to_v)
        )
        query, key = shift_logits(query, key)
        if self.collector is not None and self.target == "cpu" and query.shape[2] >= LARGE:
            context, mean = attend_by_head(query, key, value)
            self.collector.add_mean(mean)
        else:
            context, probabilities = attend(query, key, value)
            if self.collector is not None:
                self.collector.add(probabilities)
        return self.to_out(context.transpose(1, 2).flatten(2))


class PromptCrossAttention(nn.Module):
    """Cross-attention of diffusers whose keys and values, of a fixed prompt, are constants of the graph."""

    key: Tensor
    value: Tensor

    def __init__(self, attention: "Attention", prompt: Tensor) -> None:
        super().__init__()
        self.heads: int = attention.heads
        self.to_q, self.to_out = attention.to_q, attention.to_out[0]
        with torch.no_grad():
            for name, linear in (("key", attention.to_k), ("value", attention.to_v)):
                # In float32, rounded once.
                bias = None if linear.bias is None else linear.bias.float()
                constant = nn.functional.linear(prompt.float(), linear.weight.float(), bias).to(linear.weight.dtype)
                self.register_buffer(name, _split_heads(constant, self.heads).clone())
        scale_linear(self.to_q, attention.scale)

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states [B, n, C] → [B, n, C]."""
        query = _split_heads(self.to_q(hidden_states), self.heads)
        context, _probabilities = attend(query, self.key, self.value)
        return self.to_out(context.transpose(1, 2).flatten(2))


def scale_linear(linear: nn.Linear, scale: float) -> None:
    """Multiply a linear layer's output by `scale`, in place, through its weights."""
    with torch.no_grad():
        linear.weight.mul_(scale)
        if linear.bias is not None:
            linear.bias.mul_(scale)


def is_plain(attention: "Attention") -> bool:
    """Whether the rewritten layers compute what this one does: no norms, masks, residual or added keys of its own."""
    return (
        all(
            getattr(attention, name, None) is None
            for name in ("group_norm", "spatial_norm", "norm_q", "norm_k", "norm_cross", "add_k_proj")
        )
        and not attention.residual_connection
        and attention.rescale_output_factor == 1.0
    )

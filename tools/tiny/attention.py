"""Losses of the tiny model's self-attention maps against a target attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


TARGET_THRESHOLD = 1.6  # at which the merge of targets is about best: 1.3 to 2 differ little
THRESHOLD = 0.6  # at which the merge of the trained maps, which are smoother, is to be best


class KeepMaps:
    """diffusers attention processor that keeps the self-attention maps, mean over heads, with their gradient."""

    def __init__(self) -> None:
        self._maps: dict[int, list[Tensor]] = {}

    def __call__(
        self, attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """hidden_states [B, n, C] → [B, n, C]."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for layer, x in ((attention.to_q, hidden_states), (attention.to_k, source), (attention.to_v, source))
        )
        maps = (query @ key.mT * attention.scale).float().softmax(-1)
        if encoder_hidden_states is None:
            self._maps.setdefault(maps.shape[-1], []).append(maps.mean(1))
        return attention.to_out[0]((maps.to(value.dtype) @ value).transpose(1, 2).flatten(2))

    def take(self) -> list[Tensor]:
        """The maps of the last pass, one [B, n, n] per resolution, finest first; forgets them."""
        maps, self._maps = self._maps, {}
        return [sum(maps[n][1:], maps[n][0]) / len(maps[n]) for n in sorted(maps, reverse=True)]


def aggregate_rows(pyramid: list[Tensor], rows: Tensor) -> Tensor:
    """`rows` int64 [k] of the aggregated attention, float32 [B, k, n], of square maps.

    The same as `runtime.merge.aggregate_attention` with proportional weights (the paper's section 3.2), in torch.
    """
    from torch.nn.functional import interpolate

    sides = [round(maps.shape[-1] ** 0.5) for maps in pyramid]
    finest = sides[0]
    total: Any = 0
    for maps, side in zip(pyramid, sides, strict=True):
        ratio = finest // side
        maps = maps[:, rows // finest // ratio * side + rows % finest // ratio]
        if ratio > 1:
            maps = interpolate(maps.unflatten(-1, (side, side)), (finest, finest), mode="bilinear").flatten(2)
            maps = maps / maps.sum(-1, keepdim=True)
        total = total + maps * (side / sum(sides))
    return total


def coarser(target: Tensor, ratio: int) -> Tensor:
    """A target [B, n, n] at a `ratio` times smaller side: mean of rows, sum of columns."""
    side = round(target.shape[-1] ** 0.5)
    small = side // ratio
    blocks = target.view(-1, small, ratio, small, ratio, small, ratio, small, ratio)
    return blocks.sum((6, 8)).mean((2, 4)).reshape(-1, small**2, small**2)


def divergence(target: Tensor, maps: Tensor) -> Tensor:
    """Mean over rows of KL(target ‖ maps), float32 [B] from [B, k, n] both."""
    return (target * (target.clamp_min(1e-12).log() - maps.clamp_min(1e-9).log())).sum(-1).mean(-1)


def distances(maps: Tensor) -> Tensor:
    """The merge's divergence D of every pair of rows: float32 [B, k, k] from [B, k, n]; 0.001 at least.

    D is the symmetric KL divergence ½ Σ (a − b)(log a − log b): the paper's equation 5.
    """
    logs = maps.clamp_min(1e-9).log()
    own = (maps * logs).sum(-1)
    crossed = maps @ logs.mT
    return (0.5 * (own[:, :, None] + own[:, None] - crossed - crossed.mT)).clamp_min(1e-3)


def merge_loss(maps: Tensor, target: Tensor) -> Tensor:
    """How far the merge's decisions on `maps` are from those on `target`: float32 [B] from float32 [B, k, n] each.

    Two rows are near when their divergence is below a threshold; a sigmoid makes the decision soft. The loss is the
    cross entropy of these decisions over all pairs of rows, less its own minimum. Decisions on targets are steeper, so
    that those on maps move away from their threshold.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

    with torch.no_grad():
        near = torch.sigmoid(-4 * (distances(target) / TARGET_THRESHOLD).log())
        least = binary_cross_entropy(near, near, reduction="none")
    found = -3 * (distances(maps) / THRESHOLD).log()
    return (binary_cross_entropy_with_logits(found, near, reduction="none") - least).mean((1, 2))


def mirror_loss(pyramid: list[Tensor], rows: Tensor) -> Tensor:
    """How far the maps of mirror images are from the mirrored maps: a float32 scalar, 0 where they are equal.

    The second half of the batch are the mirror images of the first. The mean of the merge's D over `rows` int64 [k] of
    the aggregated attention.
    """
    count, side = len(pyramid[0]) // 2, round(pyramid[0].shape[-1] ** 0.5)
    own = aggregate_rows([maps[:count] for maps in pyramid], rows)
    other = aggregate_rows([maps[count:] for maps in pyramid], rows // side * side + side - 1 - rows % side)
    other = other.unflatten(-1, (side, side)).flip(-1).flatten(2)
    return 0.5 * (divergence(own, other) + divergence(other, own)).mean()


def attention_loss(pyramid: list[Tensor], target: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL divergence of `target` [B, n, n] to the aggregate and to the maps of each resolution, and `merge_loss`.

    Three tensors float32 [B]. Of the finest maps and of the aggregate only `rows` int64 [k] count, which saves three
    quarters of the time.
    """
    sides = [round(maps.shape[-1] ** 0.5) for maps in pyramid]
    aggregate = aggregate_rows(pyramid, rows)
    each = divergence(target[:, rows], pyramid[0][:, rows])
    for maps, side in zip(pyramid[1:], sides[1:], strict=True):
        each = each + divergence(coarser(target, sides[0] // side), maps)
    return divergence(target[:, rows], aggregate), each, merge_loss(aggregate, target[:, rows])

"""The later iterations of the merge as tensor code: proposals near each other become one (paper, section 3.3)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from export.graph.labels_tensors import active_first, logarithm, pick, take_rows

BLOCK = 64  # proposals per matrix product


def merge_proposals(proposals: Tensor, valid: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Iteration t ≥ 1: in order, each proposal not yet claimed becomes the mean of all proposals near it.

    `proposals` [P, n] of mean 1 and `valid` bool [P] → the same; a claimed proposal keeps its row and is not valid.
    """
    count, n = proposals.shape

    def products(ids: Tensor) -> Tensor:
        return logarithm(take_rows(proposals, ids)) @ proposals.t()

    cross = _for_each(valid, products, torch.zeros(count, count))
    entropy = cross.diagonal()
    near = entropy[:, None] + entropy - cross - cross.t() < 2 * n * threshold
    near = (near | torch.eye(count, dtype=torch.bool)) & valid[:, None] & valid
    keep = first_come(near, valid)
    members = near.float()

    def sums(ids: Tensor) -> Tensor:
        return take_rows(members, ids) @ proposals

    # The division is outside the loop: TensorRT cannot build a loop that reads another loop's result unchanged.
    means = _for_each(keep, sums, torch.zeros_like(proposals)) / members.sum(-1, keepdim=True).clamp(min=1)
    return means, keep


def _for_each(wanted: Tensor, compute: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """`start` [P, …] with compute(ids) in the rows where `wanted` bool [P] is true; other rows may be replaced, too.

    The rows are computed in blocks, so that a merge of few proposals costs little.
    """
    order, count = active_first(wanted.float()[None])
    # The last block starts earlier, so that all blocks have one size.
    size = min(BLOCK, len(wanted))
    last = len(wanted) - size
    blocks = torch.stack([order[0, min(i, last) : min(i, last) + size] for i in range(0, len(wanted), size)])
    count = count[0]

    def body(index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        ids = pick(blocks, index)
        return index + 1, values.index_put((ids,), compute(ids))

    state = (torch.zeros((), dtype=torch.int64), start)
    return while_loop(lambda index, _: index * size < count, body, state)[1]


def first_come(near: Tensor, valid: Tensor) -> Tensor:
    """The proposals that no earlier kept proposal claims: near bool [P, P] and valid bool [P] → bool [P].

    The loop repeats keep ← valid ∧ ¬(strictly-lower(near)ᵀ·keep) until nothing changes. There is one fixed point, for
    the first i values are right after i rounds. Most frames need a few rounds, a chain of P proposals needs P − 1.
    """
    claims = (near & torch.ones_like(near).triu(1)).float()

    def body(keep: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        following = torch.where((keep[None] @ claims)[0] > 0, 0.0, valid.float())
        return following, (following - keep).abs().amax(0) > 0

    keep, _ = while_loop(lambda _, changed: changed.clone(), body, (valid.float(), torch.ones((), dtype=torch.bool)))
    return keep > 0

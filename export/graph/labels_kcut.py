"""The solver kcut as tensor code: tokens move between proposals while their normalised association grows.

The arithmetic is that of `runtime.merge.solvers.kcut`, in float32.
"""

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from export.graph.labels_tensors import Aggregated, block_means, blocks
from runtime.merge.solvers.kcut import MOST_DOUBLINGS, MOST_ROUNDS
from runtime.merge.solvers.ncut import ALPHA

SMALLEST = 1e-30
NOWHERE = -1e30  # the pull of a segment that there is not


def cut_proposals(maps: Aggregated, shape: tuple[int, int], proposals: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The K-way cut of the maps that begins from the proposals.

    `shape`: (h, w) of the tokens. `proposals` [P, n] and `valid` bool [P]: as `merge_proposals` gives them.
    Returns scores [P, n], how like a segment's mean map each map is, from 0 to 1, and which of them are segments, bool
    [P].
    """
    n, count = proposals.shape[1], len(proposals)
    whole = maps.rows(torch.arange(n))
    own = _profiles(whole, shape)
    likeness = torch.where(valid, own @ _profiles(proposals, shape).t(), -1.0)
    members = _one_hot(associate(_affinities(own), likeness.argmax(-1), count), count)
    sizes = members.sum(0)
    means = members.t() @ whole / sizes.clamp(min=1)[:, None]
    return _profiles(means, shape) @ own.t(), sizes > 0


def _profiles(rows: Tensor, shape: tuple[int, int]) -> Tensor:
    """As `runtime.merge.likeness.profiles`: [m, n] → [m, cells], of unit length."""
    (h, w), down, across = shape, blocks(shape[0]), blocks(shape[1])
    means = block_means(h, down).t() @ (rows.reshape(-1, h, w) @ block_means(w, across))
    roots = means.flatten(1).clamp(min=0).sqrt()
    return roots / (roots * roots).sum(-1, keepdim=True).sqrt().clamp(min=SMALLEST)


def _affinities(unit: Tensor) -> Tensor:
    """As `runtime.merge.solvers.ncut.affinities`: [n, d] → [n, n]."""
    products = unit @ unit.t()
    least, most = products.amin((0, 1)), products.amax((0, 1))
    spread = most - least
    scaled = ((products - least) / spread.clamp(min=SMALLEST)).clamp(0, 1)
    result, square = None, scaled
    for bit in reversed(f"{int(ALPHA):b}"):
        if bit == "1":
            result = square if result is None else result * square
        square = square * square
    assert result is not None
    return torch.where(spread > 1e-6, result, torch.ones_like(result))


def _one_hot(labels: Tensor, count: int) -> Tensor:
    return (labels[:, None] == torch.arange(count)).float()


def associate(affinity: Tensor, segments: Tensor, count: int) -> Tensor:
    """As `runtime.merge.solvers.kcut.associate`; here some of the `count` segments may have no token from the start.

    `affinity` float32 [n, n], `segments` int64 [n] → int64 [n]. NumPy's two loops, rounds and doublings, are one.
    """
    n = len(affinity)
    degrees = affinity.sum(-1)
    used = _one_hot(segments, count).amax(0)  # 1.0 or 0.0
    columns = used.sum()

    def state(members: Tensor) -> tuple[Tensor, Tensor]:
        """Σ q/v, and its derivative [n, P]."""
        sums = affinity @ members
        # A row, not a vector: ONNX Runtime 1.31 multiplies a transposed matrix by a vector wrongly.
        volume = (degrees[None] @ members)[0].clamp(min=SMALLEST)
        share = (members * sums).sum(0) / volume
        pull = 2 * sums / volume - degrees[:, None] * (share / volume)
        return share.sum(), torch.where(used > 0, pull, NOWHERE)

    def body(
        labels: Tensor, value: Tensor, pull: Tensor, stay: Tensor, tries: Tensor, rounds: Tensor, _: Tensor
    ) -> tuple[Tensor, ...]:
        moved = (pull + stay * _one_hot(labels, count)).argmax(-1)
        changed = (moved - labels).abs().amax(0) > 0
        members = _one_hot(moved, count)
        emptied = (used - members.amax(0)).amax(0) > 0
        reached, next_pull = state(members)
        better = changed & ~emptied & (reached > value)
        weight = (pull.abs() * used).sum() / (n * columns) / 16
        tries = torch.where(better, 0, tries + 1)
        rounds = rounds + better.to(torch.int64)
        return (
            torch.where(better, moved, labels),
            torch.where(better, reached, value),
            torch.where(better, next_pull, pull),
            torch.where(better, torch.zeros_like(stay), torch.maximum(2 * stay, weight)),
            tries,
            rounds,
            changed & (tries < MOST_DOUBLINGS) & (rounds < MOST_ROUNDS),
        )

    value, pull = state(_one_hot(segments, count))
    zero, none = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    start = (segments, value, pull, zero, none, none.clone(), torch.ones((), dtype=torch.bool))
    found: Tensor = while_loop(lambda *values: values[-1].clone(), body, start)[0]
    return found

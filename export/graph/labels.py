"""DiffSeg as tensor code, pyramid → labels, so that an engine needs no merge core.

Paper: "Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), sections 3.2 to 3.4. The arithmetic is that of
`runtime.merge`. Every shape in the graph is fixed at export, as TensorRT's parser needs it; only the number of rounds
of a loop depends on the frame, so that no work is wasted on a CPU.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

from export.graph.labels_kcut import cut_proposals
from export.graph.labels_merge import merge_proposals
from export.graph.labels_tensors import (
    Aggregated,
    active_first,
    block_means,
    blocks,
    logarithm,
    pick,
    sources,
    sum_where_shared,
    take_rows,
    tiles,
)
from runtime.engine.spec import Level
from runtime.merge.aggregate import interpolation
from runtime.merge.divergence import SMALLEST_PROBABILITY
from runtime.merge.iterations import SCREENING_MARGIN
from runtime.pyramid.anchors import anchor_queries
from runtime.pyramid.weights import resolution_ratios

CHUNK = 48  # anchors per matrix product of the first iteration


class LabelsHead(nn.Module):
    """Aggregate, merge, suppress. Maps are multiplied by n, so that their mean is 1: see `logarithm`."""

    anchors: Tensor
    own: Tensor
    tiles: Tensor
    fresh: Tensor

    def __init__(
        self,
        levels: Sequence[Level],
        size: tuple[int, int],
        grid: int = 16,
        weights: Any = None,
        solver: str = "merge",
    ) -> None:
        """Fix what is part of the graph.

        `levels`: of the pyramid, finest first. `size`: (H, W) of the labels. `grid`: anchors per axis. `weights`: as
        `runtime.pyramid.weights.resolution_ratios` takes them; None means "proportional". `solver`: "merge" or "kcut".
        Raises ValueError when the grid does not fit the finest level, or the weights do not fit the levels.
        """
        super().__init__()
        self.shapes = [(level.height, level.width) for level in levels]
        self.ratios = resolution_ratios(
            "proportional" if weights is None else weights, self.shapes, [level.layers for level in levels]
        )
        self.size, self.solver = size, solver
        h, w = self.shapes[0]
        self.n = h * w
        self.count = grid * grid
        padded = math.ceil(self.count / CHUNK) * CHUNK
        for index, shape in enumerate(self.shapes[1:], 1):
            self.register_buffer(f"down_{index}", torch.from_numpy(interpolation(shape[0], h)), persistent=False)
            self.register_buffer(f"across_{index}", torch.from_numpy(interpolation(shape[1], w)), persistent=False)
        # Bilinear interpolation as two matrix products: three times faster on a CPU than a Resize.
        self.register_buffer("taller", torch.from_numpy(interpolation(h, size[0])), persistent=False)
        self.register_buffer("wider", torch.from_numpy(interpolation(w, size[1]).T.copy()), persistent=False)
        anchors = torch.zeros(padded, dtype=torch.int64)
        anchors[: self.count] = torch.from_numpy(anchor_queries((h, w), grid))
        self.register_buffer("anchors", anchors, persistent=False)
        rows, fresh = tiles(h, w)
        self.register_buffer("tiles", rows, persistent=False)
        self.register_buffer("fresh", fresh, persistent=False)
        own = (rows[:, None, :] == anchors[: self.count, None]).any(-1)
        self.register_buffer("own", own, persistent=False)  # [tiles, anchors]: the anchor is one of the tile's queries

    def forward(self, pyramid: Sequence[Tensor], thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """Maps float32 [B, n, n], finest first, and thresholds float32 [iterations] → labels and segments.

        Labels: [B, H, W], uint8 up to 256 anchors and int32 above, numbered like the proposals of `runtime.merge`.
        Segments: int32 [B], the number of proposals.
        """
        batch = pyramid[0].shape[0]
        if isinstance(batch, int) and batch == 1:
            # Flattened, not indexed: a copy of the finest maps would cost as much as a matrix product.
            labels, count = self.segment([level.flatten(0, 1) for level in pyramid], thresholds)
            labels, segments = labels[None], count[None]
        else:
            labels, segments = self._each_frame(batch, pyramid, thresholds)
        return (labels.to(torch.uint8) if self.count <= 256 else labels), segments

    def _each_frame(self, batch: Any, pyramid: Sequence[Tensor], thresholds: Tensor) -> tuple[Tensor, Tensor]:
        # A loop, not a dimension: a batch needs as much memory as a frame, and no frame waits for another's merge.
        frames = torch.arange(batch)

        def more(index: Tensor, *_: Tensor) -> Tensor:
            return index < batch

        def body(index: Tensor, labels: Tensor, segments: Tensor) -> tuple[Tensor, ...]:
            found, count = self.segment([pick(level, index) for level in pyramid], thresholds)
            mine = frames == index
            return (
                index + 1,
                torch.where(mine[:, None, None], found, labels),
                torch.where(mine, count, segments),
            )

        start = torch.zeros((), dtype=torch.int64)
        labels = torch.zeros((batch, *self.size), dtype=torch.int32)
        segments = torch.zeros(batch, dtype=torch.int32)
        _, labels, segments = while_loop(more, body, (start, labels, segments))
        return labels, segments

    def segment(self, pyramid: Sequence[Tensor], thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """One frame's maps [n, n] → int32 labels [H, W] and the number of proposals, int32 []."""
        maps = self.aggregate(pyramid)
        proposals = self.merge_around_anchors(maps, thresholds[0])
        valid = torch.ones(self.count, dtype=torch.bool)
        for iteration in range(1, thresholds.shape[0]):
            proposals, valid = merge_proposals(proposals, valid, thresholds[iteration])
        if self.solver == "kcut":
            proposals, valid = cut_proposals(maps, self.shapes[0], proposals, valid)
        return self.suppress(proposals, valid)

    def aggregate(self, pyramid: Sequence[Tensor]) -> "Aggregated":
        """Aggregated attention (paper, section 3.2), as the terms of which its rows are sums.

        Coarse maps have few distinct rows: each is interpolated once, by two small matrix products, and resolutions
        are added first where they share rows.
        """
        h, w = self.shapes[0]
        sums: list[tuple[Tensor, tuple[int, int]]] = []
        for index in reversed(range(1, len(pyramid))):
            maps, shape, ratio = pyramid[index], self.shapes[index], self.ratios[index]
            if ratio == 0:
                continue
            down, across = self.get_buffer(f"down_{index}"), self.get_buffer(f"across_{index}")
            # Normalising after the interpolation is the same as weighting each pixel by its share in it.
            shares = torch.outer(down.sum(0), across.sum(0)).reshape(-1, 1)
            rows = maps * (ratio * self.n / (maps @ shares).clamp(min=SMALLEST_PROBABILITY))
            rows = (down @ (rows.reshape(-1, *shape) @ across.t())).reshape(-1, self.n)
            sums = sum_where_shared(rows, shape, sums)
        parts = [(rows, sources((h, w), shape)) for rows, shape in sums]
        if self.ratios[0] == 0:
            return Aggregated(None, None, parts)
        finest = pyramid[0]
        return Aggregated(finest, self.ratios[0] * self.n / finest.sum(-1).clamp(min=SMALLEST_PROBABILITY), parts)

    def merge_around_anchors(self, maps: "Aggregated", threshold: Tensor) -> Tensor:
        """Iteration 0: every anchor becomes the mean of all maps nearer to it than the threshold, [P, n].

        It goes through tiles of neighbouring queries, and compares each with chunks of the anchors that may be near.
        """
        order, chunks = self._work(maps, threshold)
        per_tile = order.shape[0] // chunks.shape[0]
        # One loop over all chunks of all tiles: an inner loop would copy the sums at its end, which costs more than
        # computing a tile's logarithms again for each of its chunks.
        ends = chunks.cumsum(0)
        centres = maps.rows(self.anchors)
        centre_logs = logarithm(centres)
        centre_entropy = (centres * centre_logs).sum(-1)
        limit = 2 * self.n * threshold
        padded = len(self.anchors)
        real = torch.arange(padded) < self.count

        def chunk(index: Tensor, sums: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
            tile = (ends <= index).sum()
            rows, fresh = pick(self.tiles, tile), pick(self.fresh, tile)
            ids = pick(order, tile * per_tile + index - pick(ends, tile) + pick(chunks, tile))
            probabilities = maps.rows(rows)
            logs = logarithm(probabilities)
            entropy = (probabilities * logs).sum(-1)
            cross = take_rows(centre_logs, ids) @ probabilities.t() + take_rows(centres, ids) @ logs.t()
            near = take_rows(centre_entropy, ids)[:, None] + entropy - cross < limit
            near = near | (take_rows(self.anchors, ids)[:, None] == rows)  # D(a, a) is 0, but its products may round
            members = (near & fresh & take_rows(real, ids)[:, None]).float()
            return (
                index + 1,
                sums.index_put((ids,), take_rows(sums, ids) + members @ probabilities),
                counts.index_put((ids,), take_rows(counts, ids) + members.sum(-1)),
            )

        state = (torch.zeros((), dtype=torch.int64), torch.zeros(padded, self.n), torch.zeros(padded))
        _, sums, counts = while_loop(lambda index, *_: index < ends[-1], chunk, state)
        return sums[: self.count] / counts[: self.count, None]

    def _work(self, maps: "Aggregated", threshold: Tensor) -> tuple[Tensor, Tensor]:
        """The anchors that each tile must be compared with, in chunks [tiles · chunks, CHUNK]; chunks of each tile.

        D never grows when pixels are summed into blocks (the data-processing inequality), and a sixteenth of the
        pixels costs a sixteenth of the time. Anchors too far away there need no exact divergence, and no member of a
        proposal is lost.
        """
        h, w = self.shapes[0]
        down, across = blocks(h), blocks(w)
        size = down * across
        means = maps.project(lambda rows: block_means(h, down).t() @ (rows.reshape(-1, h, w) @ block_means(w, across)))
        # The exact logarithm takes a maximum with the smallest probability; adding it keeps the inequality true at 0.
        coarse = means + self.n * SMALLEST_PROBABILITY
        logs = coarse.log()
        entropy = (coarse * logs).sum(-1)
        anchors = self.anchors[: self.count]
        cross = take_rows(coarse, anchors) @ logs.t() + take_rows(logs, anchors) @ coarse.t()
        near = take_rows(entropy, anchors)[:, None] + entropy - cross < size * (2 * threshold + SCREENING_MARGIN)
        by_tile = near.float().index_select(1, self.tiles.flatten()).reshape(self.count, *self.tiles.shape).amax(-1)
        active = torch.nn.functional.pad(((by_tile.t() > 0) | self.own).float(), (0, len(self.anchors) - self.count))
        order, count = active_first(active)
        chunks = torch.div(count + (CHUNK - 1), CHUNK, rounding_mode="floor").to(torch.int64)
        return order.reshape(-1, CHUNK), chunks

    def suppress(self, proposals: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Label every pixel with its strongest proposal, the first one if several are equal (paper, section 3.4).

        The loop keeps a running maximum over the valid proposals: only one interpolated map exists at a time.
        """
        h, w = self.shapes[0]
        order, count = active_first(valid.float()[None])
        order = order[0]
        segments = count[0].to(torch.int32)

        def body(index: Tensor, labels: Tensor, best: Tensor) -> tuple[Tensor, ...]:
            chosen = pick(order, index.to(torch.int64))
            current = self.get_buffer("taller") @ pick(proposals, chosen).reshape(h, w) @ self.get_buffer("wider")
            return index + 1, torch.where(current > best, index, labels), torch.maximum(current, best)

        start = torch.zeros((), dtype=torch.int32)
        state = (start, torch.zeros(self.size, dtype=torch.int32), torch.full(self.size, -1.0))
        _, labels, _ = while_loop(lambda index, *_: index < segments, body, state)
        return labels, segments


class Merge(nn.Module):
    """The head alone, as a graph that follows a network's."""

    def __init__(self, head: LabelsHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Maps float32 [1, n, n], finest first, then thresholds float32 [iterations] → what `LabelsHead` gives."""
        return self.head(inputs[:-1], inputs[-1])


class FrameToLabels(nn.Module):
    """Network and merge in one: the graph of a labels engine."""

    def __init__(self, network: nn.Module, head: LabelsHead) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, frame: Tensor, thresholds: Tensor) -> tuple[Tensor, ...]:
        """frame, as the network takes it, and thresholds float32 [iterations] → labels [B, H, W], segments int32 [B].

        The words' maps follow, if the network gives them, and the pyramid: being an output while it is traced gives its
        values names in the graph.
        """
        found = self.network(frame)
        levels = len(self.head.shapes)
        # Always float32: half precision does not resolve the divergences of similar maps.
        pyramid = [level.float() for level in found[:levels]]
        return *self.head(pyramid, thresholds), *found[levels:], *pyramid

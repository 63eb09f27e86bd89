"""A photograph in tiles: each is segmented, and their segments are united across the seams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.errors import DiffSegError
from runtime.merge.seams import Links, Part, group, join_links, link, seam
from runtime.merge.suppress import renumber
from runtime.refine.absorb import absorb
from runtime.result import Merged, Result
from runtime.stages import Stages, check_frame
from runtime.tiles.layout import AUTO, Axis, place_tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

FINER = 0.85  # of the usual thresholds: small things are what tiles are for, and "auto" gives few segments to a tile
LEAST_REGION = 2  # tokens; smaller regions of a tile go to their neighbours
LEAST_SEEN = 4  # tokens of the view of the whole picture, from which a segment is seen in it


@dataclass(slots=True)
class _Tile:
    """One tile: its corner; nodes int32 [h, w] of its pixels; `numbers` int32 [K] and `maps` [K, h, w] of the nodes.

    `gone`: how many of its upper rows of nodes are not kept any more.
    """

    top: int
    left: int
    nodes: NDArray[np.int32]
    numbers: NDArray[np.int32]
    maps: NDArray[np.float32]
    gone: int = 0

    def keep_from(self, row: int) -> None:
        """Keep the nodes from this row of the picture on, which the tile below will overlap."""
        self.gone, self.nodes = row - self.top, self.nodes[row - self.top :].copy()


class TiledStages(Stages):
    """The stages for photographs in tiles. One photograph is in the network at a time, tile after tile.

    Where "auto" is only the engine's default, tiles have 0.85 of its thresholds.
    """

    def __init__(self, stages: Stages, tiles: str | tuple[int, int]) -> None:
        """`tiles`: see `place_tiles`. Raises DiffSegError for an engine with the head labels."""
        stages.route.check_maps("tiles")
        given = tiles if isinstance(tiles, tuple) else (1, 1) if tiles == AUTO else ()
        if len(given) != 2 or not all(isinstance(count, int) and not isinstance(count, bool) for count in given):
            raise DiffSegError(f"tiles: expected 'auto', or rows and columns such as (3, 4), found {tiles!r}")
        if min(given) < 1:
            raise DiffSegError(f"tiles: expected at least one row and one column, found {tiles!r}")
        route = stages.fixed()
        if stages.route.auto and not route.auto:
            route.config = replace(route.config, thresholds=tuple(FINER * each for each in route.config.thresholds))
        super().__init__(route, stages.refinement, stages.naming)
        self.frames, self.tiles = 1, tiles
        self._stopping = Event()

    def settings(self) -> dict[str, object]:
        """How labels are made, tiles included."""
        return {**super().settings(), "tiles": self.tiles}

    def __call__(self, frame: NDArray[np.uint8], resized: NDArray[np.uint8] | None = None, **options: Any) -> Result:
        """See `Stages.__call__`. Raises DiffSegError where details, proposals or seeds are wanted."""
        if any(value is not None and value is not False for value in options.values()):
            raise DiffSegError("tiles: a picture in tiles has no details, proposals and seeds; leave them out")
        return super().__call__(frame, resized)

    def clone(self) -> TiledStages:
        """The same on a clone of the engine, for another thread."""
        return TiledStages(super().clone(), self.tiles)

    def resize(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The frame as it is. Raises DiffSegError when it is invalid, or tiles would be too small."""
        check_frame(frame)
        self._place(frame)
        return frame

    def gather(self, resized: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """One frame, uint8 [1, H, W, 3]."""
        (frame,) = resized
        return frame[None]

    def prefetch(self, batch: NDArray[np.uint8]) -> None:
        """Tiles are brought to the network one by one."""

    def stop_with(self, stopping: Event) -> None:
        """See `Stages.stop_with`: looked at before every tile."""
        self._stopping = stopping

    def network(self, batch: NDArray[np.uint8], count: int) -> list[Any]:
        """Labels of the whole frame, as `merge` gives them."""
        labels, words = self._segment(batch[0])
        return [Merged(labels, None, None, words)]

    def merge(self, output: Any, **options: Any) -> Merged:
        """What `network` gave."""
        merged: Merged = output
        return merged

    def finish(
        self, merged: Merged, frame: NDArray[np.uint8], *, proposals: bool = False, whole: bool = False
    ) -> Result:
        """The result, refined and numbered without gaps."""
        tokens = self.route.tokens[0]
        rows, columns = self._place(frame)
        grid = [
            max(count, round(count * side / axis.side))
            for count, side, axis in zip(tokens, frame.shape, (rows, columns), strict=False)
        ]
        labels = self.refinement(merged.raw, frame, (grid[0], grid[1]))
        view = min(rows.side * columns.side, labels.size)
        if not whole and (pieces := self.refinement.split(labels, view)):
            return self.name(Result(pieces[0], len(pieces[1]), {}, words=merged.words))
        if labels is merged.raw:  # numbered without gaps, and too large to do it again for nothing
            return self.name(Result(labels, int(labels.max()) + 1, {}, words=merged.words))
        return self.name(Result(*renumber(labels), {}, words=merged.words))

    def _place(self, frame: NDArray[np.uint8]) -> tuple[Axis, Axis]:
        spec = self.route.engine.spec
        return place_tiles((frame.shape[0], frame.shape[1]), (spec.height, spec.width), self.tiles)

    def _segment(self, frame: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.float32] | None]:
        """int32 [H, W], and the words' maps of the view of the whole picture.

        Beyond it and the frame there are two tiles, the lower edges of a row of tiles, and a few numbers for each node.
        """
        rows, columns = self._place(frame)
        tokens = self.route.tokens[0]
        if len(rows.starts) == len(columns.starts) == 1:
            labels, _, words = self._look(frame, 0)
            return _resized(labels, frame.shape), words
        view, _, words = self._look(frame)
        threshold = self.route.config.thresholds[-1]
        far = _far_from_borders(view, tokens)
        whole = np.empty(frame.shape[:2], np.int32)
        least = LEAST_SEEN * whole.size / (tokens[0] * tokens[1])
        links: list[Links] = []
        seen: list[NDArray[np.int64]] = []
        count = 0
        above: list[_Tile] = []
        for top, below in zip(rows.starts, (*rows.starts[1:], len(whole)), strict=True):
            current: list[_Tile] = []
            for left in columns.starts:
                if self._stopping.is_set():
                    raise DiffSegError("interrupted in the middle of a picture, which is left out")
                place = np.s_[top : top + rows.side, left : left + columns.side]
                labels, maps, _ = self._look(frame[place])
                labels = _resized(labels, (rows.side, columns.side))
                seen.append(_seen(labels, _crop(far, place, frame.shape), int(view.max()) + 1))
                numbers = np.arange(count, count + len(maps), dtype=np.int32)
                tile = _Tile(top, left, labels + np.int32(count), numbers, maps)
                count += len(maps)
                keep = np.ones(tile.nodes.shape, bool)
                for other in (*current[-1:], *above[len(current) : len(current) + 1]):
                    links.append(self._link(other, tile, threshold))
                    _cut(keep, whole[place], frame[place], other, tile, links[-1], columns.side / tokens[1])
                np.copyto(whole[place], tile.nodes, where=keep)
                for done in current[-1:]:
                    done.keep_from(below)
                current.append(tile)
            current[-1].keep_from(below)
            above = current
        groups = group(join_links(links), np.concatenate(seen), least, rows.side * columns.side)
        pieces = [whole[top : top + rows.side] for top in range(0, len(whole), rows.side)]
        there = np.zeros(len(groups), bool)
        for piece in pieces:  # one after the other: the labels are in memory once
            there[np.unique(piece)] = True
        numbers = renumber(groups[there])[0]
        groups[there] = numbers
        for piece in pieces:
            piece[...] = groups[piece]
        return whole, words

    def _look(
        self, picture: NDArray[np.uint8], least: float = LEAST_REGION
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32] | None]:
        """Labels int32 at the engine's size without gaps, and their proposals float32 [K, h, w], of a whole picture.

        The words' maps follow. Regions of fewer than `least` tokens go to their neighbours.
        """
        output = super().network(super().gather([super().resize(picture)]), 1)[0]
        merged = self.route.merge(output, proposals=True)
        assert merged.proposals is not None
        tokens = self.route.tokens[0]
        spec = self.route.engine.spec
        raw = absorb(merged.raw, least * spec.height * spec.width / (tokens[0] * tokens[1]))
        present = np.flatnonzero(np.bincount(raw.ravel()))
        return renumber(raw)[0], merged.proposals[present].reshape(-1, *tokens), merged.words

    def _link(self, one: _Tile, other: _Tile, threshold: float) -> Links:
        height, width = other.nodes.shape  # the new tile, which is whole; all tiles have one size
        top, left = max(one.top, other.top), max(one.left, other.left)
        bottom, right = min(one.top, other.top) + height, min(one.left, other.left) + width
        tokens = self.route.tokens[0]
        grid = max(1, round((bottom - top) * tokens[0] / height)), max(1, round((right - left) * tokens[1] / width))
        parts = []
        for tile in (one, other):
            y, x = top - tile.top, left - tile.left
            nodes = tile.nodes[y - tile.gone : y - tile.gone + bottom - top, x : x + right - left]
            scale = tokens[0] / height, tokens[1] / width
            # Of a cell's centre in the overlap to where it is in the tile's tokens.
            step = (bottom - top) / grid[0] * scale[0], (right - left) / grid[1] * scale[1]
            place = np.array(
                [
                    [step[1], 0, (x + (right - left) / grid[1] / 2) * scale[1] - 0.5],
                    [0, step[0], (y + (bottom - top) / grid[0] / 2) * scale[0] - 0.5],
                ]
            )
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            maps = np.stack(
                [
                    np.asarray(cv2.warpAffine(one_map, place, grid[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE))
                    for one_map in tile.maps
                ]
            )
            parts.append(Part(nodes, maps.reshape(len(maps), -1).astype(np.float32), tile.numbers))
        return link(parts[0], parts[1], threshold)


def in_tiles(stages: Stages, tiles: str | tuple[int, int] | None) -> Stages:
    """The stages, in tiles if any are wanted. Raises DiffSegError as `TiledStages` does."""
    return stages if tiles is None else TiledStages(stages, tiles)


def _far_from_borders(view: NDArray[np.int32], tokens: tuple[int, int]) -> NDArray[np.int32]:
    """The view's labels, and −1 within a token of another label."""
    size = [1 + 2 * max(1, side // count) for side, count in zip(view.shape, tokens, strict=True)]
    kernel = np.ones(size, np.uint8)
    numbers = view.astype(np.uint16)
    alike = cv2.erode(numbers, kernel) == cv2.dilate(numbers, kernel)
    return np.where(alike, view, np.int32(-1))


def _crop(view: NDArray[np.int32], place: tuple[slice, slice], size: Sequence[int]) -> NDArray[np.int32]:
    """What the view has at a place of the picture, at the picture's own scale."""
    ys, xs = (
        ((np.arange(part.start, part.stop) + 0.5) * small / whole).astype(np.intp)
        for part, small, whole in zip(place, view.shape, size, strict=False)
    )
    return view[np.ix_(ys, xs)]


def _seen(labels: NDArray[np.int32], view: NDArray[np.int32], views: int) -> NDArray[np.int64]:
    """int64 [K, views]: pixels of each of a tile's K segments in each segment of the view; −1 in `view` is left out."""
    count = int(labels.max()) + 1
    pairs = labels * np.int64(views) + view
    return np.bincount(pairs[view >= 0], minlength=count * views).reshape(count, views).astype(np.int64)


def _resized(labels: NDArray[np.int32], size: Sequence[int]) -> NDArray[np.int32]:
    fitted: Any = cv2.resize(labels, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(fitted, np.int32)


def _cut(
    keep: NDArray[np.bool_],
    before: NDArray[np.int32],
    frame: NDArray[np.uint8],
    other: _Tile,
    tile: _Tile,
    links: Links,
    token: float,
) -> None:
    """Leave in `keep` what is on the new tile's side of the seam.

    `before`: the nodes that are there so far. `frame`: the picture there. `token`: its side in pixels.
    """
    upright = other.top == tile.top
    height, width = tile.nodes.shape
    over = other.left + width - tile.left if upright else other.top + height - tile.top
    part = np.s_[:, :over] if upright else np.s_[:over]
    old, new = before[part], tile.nodes[part]
    same = links.pairs[links.sure]
    known = np.sort(same[:, 0].astype(np.int64) << 32 | same[:, 1])
    pairs = old.astype(np.int64) << 32 | new
    at = np.minimum(np.searchsorted(known, pairs), max(len(known) - 1, 0))
    disagree = known[at] != pairs if len(known) else np.ones(pairs.shape, bool)
    edges = _edges(frame[part], token, 1 if upright else 0)
    if upright:
        keep[part] &= np.arange(over) >= seam(disagree, edges)[:, None]
    else:
        keep[part] &= np.arange(over)[:, None] >= seam(disagree.T, edges.T)[None]


def _edges(picture: NDArray[np.uint8], token: float, axis: int) -> NDArray[np.float32]:
    """float32 [H, W], 0 … 1: how much a picture's colour changes along an axis, over about a token."""
    smooth: Any = cv2.GaussianBlur(picture, (0, 0), token / 2)
    change = np.abs(np.gradient(smooth.astype(np.float32), axis=axis)).sum(axis=2)
    return np.asarray(change / max(float(change.max()), 1e-6), np.float32)

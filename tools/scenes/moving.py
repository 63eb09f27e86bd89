"""Moving drawn scenes with exact masks and exact motion, on which the tracking of identities is measured.

Pieces of a drawn scene (`tools.scenes.draw`) drift, turn and grow, pass in front of each other, leave and enter. A
piece's texture moves with it, so that the origin of a pixel is known to a fraction of a pixel without an optical flow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tools.scenes.draw import SPLITS, Piece, Split, colour_pieces, mask_of, place_scene
from tools.scenes.textures import random_texture

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ENTERING = 3  # pieces that come in from outside, at most
_FASTEST = 0.016  # of the shorter side, per frame


@dataclass(frozen=True, slots=True)
class Mover:
    """A piece and its motion per frame: `velocity` in pixels (x, y), `spin` in radians, `growth` a factor."""

    piece: Piece
    velocity: tuple[float, float] = (0.0, 0.0)
    spin: float = 0.0
    growth: float = 1.0

    def pose(self, time: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The matrix [2, 2] and offset [2] that map the piece's own (x, y) into frame number `time`."""
        c, s = np.cos(self.spin * time), np.sin(self.spin * time)
        matrix = self.growth**time * np.array([[c, -s], [s, c]])
        return matrix, np.asarray(self.piece.centre) + time * np.asarray(self.velocity)


@dataclass(frozen=True, slots=True)
class MovingScene:
    """Movers, lowest first, in frames of `size` (H, W). Each frame is drawn on request."""

    movers: tuple[Mover, ...]
    size: tuple[int, int]
    noise: float = 2.0

    def mask(self, time: int) -> NDArray[np.int32]:
        """The number of the mover that is visible at each pixel: int32 [H, W]."""
        placed = []
        for mover in self.movers:
            matrix, offset = mover.pose(time)
            outline = mover.piece.outline
            turned = None if outline is None else np.asarray(outline @ matrix.T, np.float32)
            placed.append(replace(mover.piece, outline=turned, centre=(float(offset[0]), float(offset[1]))))
        return mask_of(placed, self.size)

    def frame(self, time: int) -> NDArray[np.uint8]:
        """The frame uint8 [H, W, 3] BGR. Its sensor noise differs from frame to frame."""
        mask = self.mask(time)
        frame = np.empty((*self.size, 3), np.float32)
        for index, mover in enumerate(self.movers):
            rows, columns = np.nonzero(mask == index)
            x, y = self._own(index, time, np.stack([columns, rows]).astype(np.float64)).astype(np.float32)
            pattern = mover.piece.texture(x, y)[:, None] * np.asarray(mover.piece.texture.direction, np.float32)
            frame[rows, columns] = np.asarray(mover.piece.colour, np.float32) + pattern
        rng = np.random.default_rng([time, *self.size])
        frame += np.asarray(rng.normal(0, 1, frame.shape), np.float32) * np.float32(self.noise)
        return np.clip(np.rint(frame), 0, 255).astype(np.uint8)

    def frames(self, count: int) -> Iterator[NDArray[np.uint8]]:
        """The first `count` frames."""
        return (self.frame(time) for time in range(count))

    def origins(self, time: int, before: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Where every pixel of frame `time` was in frame `before`: float32 [H, W, 2] (x, y).

        Also bool [H, W]: whether it was visible there, inside the frame and not behind another piece.
        """
        mask, earlier = self.mask(time), self.mask(before)
        origins = np.empty((*self.size, 2), np.float32)
        for index, mover in enumerate(self.movers):
            rows, columns = np.nonzero(mask == index)
            own = self._own(index, time, np.stack([columns, rows]).astype(np.float64))
            matrix, offset = mover.pose(before)
            origins[rows, columns] = (matrix @ own + offset[:, None]).T
        x, y = np.rint(origins[..., 0]).astype(int), np.rint(origins[..., 1]).astype(int)
        height, width = self.size
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return origins, inside & (earlier[y.clip(0, height - 1), x.clip(0, width - 1)] == mask)

    def _own(self, index: int, time: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points [2, k] of frame number `time` in a mover's own coordinates."""
        matrix, offset = self.movers[index].pose(time)
        own: NDArray[np.float64] = np.linalg.inv(matrix) @ (points - offset[:, None])
        return own


def draw_moving_scene(
    seed: int, size: tuple[int, int] = (288, 384), *, share: float = 0.5, split: Split = "train"
) -> MovingScene:
    """The moving scene number `seed`. Arguments and errors are those of `tools.scenes.draw.draw_scene`.

    The ground moves as if a camera panned; a third of the pieces move with it, the others on their own, and up to three
    come in from outside.
    """
    if seed < 0 or min(size) < 16 or not 0 <= share <= 1:
        raise ValueError(f"a scene needs seed ≥ 0, sides ≥ 16 and 0 ≤ share ≤ 1: got {seed}, {size}, {share}")
    rng = np.random.default_rng([SPLITS[split], seed, 1])
    pieces, mask = place_scene(rng, size)
    pieces = colour_pieces(rng, pieces, mask, share)
    fastest = _FASTEST * min(size)
    pan = rng.uniform(-0.3, 0.3, 2) * fastest * float(rng.random() < 0.6)
    movers = []
    for index, piece in enumerate(pieces):
        resting = index == 0 or rng.random() < 1 / 3
        movers.append(Mover(piece, _pair(pan)) if resting else _wander(rng, piece, fastest))
    for _ in range(int(rng.integers(0, _ENTERING + 1))):
        movers.append(_entering(rng, pieces, size, fastest))
    return MovingScene(tuple(movers), size, noise=float(rng.uniform(0, 4)))


def _wander(rng: np.random.Generator, piece: Piece, fastest: float) -> Mover:
    angle, speed = rng.uniform(0, 2 * np.pi), fastest * rng.uniform(0.1, 1)
    velocity = np.array([np.cos(angle), np.sin(angle)]) * speed
    turning, growing = rng.random(2) < (0.3, 0.3)
    spin = float(rng.uniform(-0.03, 0.03)) if turning else 0.0
    growth = float(rng.uniform(0.99, 1.01)) if growing else 1.0
    return Mover(piece, _pair(velocity), spin, growth)


def _entering(rng: np.random.Generator, pieces: Sequence[Piece], size: tuple[int, int], fastest: float) -> Mover:
    """An ellipse that starts outside the frame and moves in."""
    height, width = size
    radius = min(size) * float(rng.uniform(0.12, 0.25))
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    outline = radius * np.stack([np.cos(angle), rng.uniform(0.6, 1) * np.sin(angle)], 1)
    from_left = bool(rng.random() < 0.5)
    centre = (-radius if from_left else width + radius, float(rng.uniform(0.15, 0.85)) * height)
    velocity = (
        fastest * float(rng.uniform(0.6, 1)) * (1 if from_left else -1),
        fastest * float(rng.uniform(-0.3, 0.3)),
    )
    # Its brightness differs from that of most other pieces.
    mean = float(np.mean([piece.colour for piece in pieces]))
    grey = rng.uniform(45, 80) if mean > 128 else rng.uniform(175, 210)
    blue, green, red = np.clip(grey + rng.normal(0, 25, 3), 45, 210)
    piece = Piece(outline.astype(np.float32), centre, random_texture(rng), (float(blue), float(green), float(red)))
    return Mover(piece, velocity)


def _pair(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values[0]), float(values[1])

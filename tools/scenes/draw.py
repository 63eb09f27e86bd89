"""Drawn scenes with exact masks, on which the tiny model is trained and measured.

Placing and drawing are separate: `place_scene` decides on the pieces and their places, `mask_of` and `paint` turn them
into pixels. A caller who shifts the pieces between two calls gets exact motion, since a texture is a function of the
piece's own coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from tools.scenes.textures import FAMILIES, Texture, random_texture

if TYPE_CHECKING:
    from numpy.typing import NDArray

Split = Literal["train", "development", "test"]

# The split is part of the generator's key, so that no seed of one split can give a scene of another.
SPLITS: dict[Split, int] = {"train": 0, "development": 1, "test": 2}

_MIN_AREA = 0.006  # a region smaller than this part of the frame is left out
_MIN_CONTACT = 6  # pixels of common border that make two regions neighbours
_MIN_COLOUR_STEP = 30.0  # Lab distance between neighbours that are to differ in colour


@dataclass(frozen=True, slots=True)
class Piece:
    """An outline at a place. In a list of pieces, later ones cover earlier ones.

    `outline`: float32 [k, 2] (x, y) around the origin, in pixels; None: the whole frame.
    """

    outline: NDArray[np.float32] | None
    centre: tuple[float, float]
    texture: Texture
    colour: tuple[float, float, float]  # the mean, BGR


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn scene: `frame` uint8 [H, W, 3] BGR, `mask` int32 [H, W] with indices 0…pieces-1."""

    frame: NDArray[np.uint8]
    mask: NDArray[np.int32]


def draw_scene(seed: int, size: tuple[int, int] = (256, 256), *, share: float = 0.5, split: Split = "train") -> Scene:
    """Draw the scene number `seed`, the same one on every call.

    `size`: height and width in pixels. `share`: part of the neighbouring pairs that have one mean colour and differ in
    texture alone.
    Raises ValueError for a negative seed, a side below 16, or a `share` outside 0…1.
    """
    if seed < 0 or min(size) < 16 or not 0 <= share <= 1:
        raise ValueError(f"a scene needs seed ≥ 0, sides ≥ 16 and 0 ≤ share ≤ 1: got {seed}, {size}, {share}")
    rng = np.random.default_rng([SPLITS[split], seed])
    pieces, mask = place_scene(rng, size)
    pieces = colour_pieces(rng, pieces, mask, share)
    return Scene(paint(rng, pieces, mask), mask)


def place_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[list[Piece], NDArray[np.int32]]:
    """Place a background of a few areas, and shapes that cover parts of it; leave out pieces that show too little.

    Returns the pieces, lowest first, all of them grey, and their mask int32 [H, W].
    """
    height, width = size
    side = min(size)

    def piece(outline: NDArray[np.float32] | None, centre: tuple[float, float]) -> Piece:
        return Piece(outline, centre, random_texture(rng), (128.0, 128.0, 128.0))

    pieces = [piece(None, (width / 2, height / 2))]
    for _ in range(int(rng.integers(0, 4))):
        centre = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
        pieces.append(piece(_half_plane(rng, 2.0 * max(size)), centre))
    for _ in range(int(rng.integers(2, 9))):
        radius = side * float(np.exp(rng.uniform(np.log(0.09), np.log(0.42))))
        shape = _SHAPES[int(rng.integers(len(_SHAPES)))]
        centre = (
            float(rng.uniform(-0.05, 1.05)) * width,
            float(rng.uniform(-0.05, 1.05)) * height,
        )
        pieces.append(piece(shape(rng, radius), centre))
    while True:
        mask = mask_of(pieces, size)
        areas = np.bincount(mask.ravel(), minlength=len(pieces))
        kept = [p for p, area in zip(pieces, areas, strict=True) if area >= _MIN_AREA * mask.size]
        if len(kept) == len(pieces):
            return pieces, mask
        # The lowest piece has to cover the frame, or some pixels would belong to no piece.
        pieces = kept if kept[0].outline is None else [pieces[0], *kept]
        if len(pieces) == len(areas):
            # Only a sliver of the ground is visible: the next piece takes its place.
            pieces = [replace(pieces[1], outline=None), *pieces[2:]]


def mask_of(pieces: list[Piece], size: tuple[int, int]) -> NDArray[np.int32]:
    """The number of the piece that is visible at each pixel: int32 [H, W]."""
    mask = np.zeros(size, np.int32)
    for index, piece in enumerate(pieces):
        if piece.outline is None:
            mask[:] = index
        else:
            points = np.rint((piece.outline + np.asarray(piece.centre, np.float32)) * 16).astype(np.int32)
            cv2.fillPoly(mask, [points], index, shift=4)
    return mask


def place_piece(
    rng: np.random.Generator, centre: tuple[float, float], radius: float, under: tuple[float, float, float]
) -> Piece:
    """A shape of one colour, which differs from `under`, the mean colour around it."""
    shape = _SHAPES[int(rng.integers(len(_SHAPES)))]
    return Piece(shape(rng, radius), centre, random_texture(rng, "plain"), _distinct_colour(rng, [under]))


def neighbours(mask: NDArray[np.int32], contact: int = _MIN_CONTACT) -> list[tuple[int, int]]:
    """Pairs (low, high) of mask values that touch along at least `contact` pixel edges, sorted."""
    count = int(mask.max()) + 1
    pairs = np.concatenate(
        [
            np.stack([mask[:, 1:].ravel(), mask[:, :-1].ravel()]),
            np.stack([mask[1:].ravel(), mask[:-1].ravel()]),
        ],
        axis=1,
    )
    low, high = pairs.min(0), pairs.max(0)
    lengths = np.bincount((low * count + high)[low != high], minlength=count * count)
    return [(int(k) // count, int(k) % count) for k in np.flatnonzero(lengths >= contact)]


def colour_pieces(rng: np.random.Generator, pieces: list[Piece], mask: NDArray[np.int32], share: float) -> list[Piece]:
    """Give mean colours so that `share` of the neighbouring pairs have the same; those differ in texture family."""
    pairs = neighbours(mask)
    group = np.arange(len(pieces))
    for index in rng.permutation(len(pairs)):
        a, b = pairs[index]
        joined = np.where(group == group[b], group[a], group)
        if sum(joined[i] == joined[j] for i, j in pairs) <= share * len(pairs) + 0.5:
            group = joined
    colours: dict[int, tuple[float, float, float]] = {}
    for g in np.unique(group):
        near = {int(group[j]) for i, j in [*pairs, *((b, a) for a, b in pairs)] if group[i] == g} - {int(g)}
        colours[int(g)] = _distinct_colour(rng, [colours[n] for n in sorted(near) if n in colours])
    coloured: list[Piece] = []
    for index, piece in enumerate(pieces):
        texture = piece.texture
        taken = {coloured[a].texture.family for a, b in pairs if b == index and group[a] == group[b]}
        textured = [family for family in FAMILIES if family != "plain"]
        free = [family for family in textured if family not in taken] or textured
        alike = any(index in pair and group[pair[0]] == group[pair[1]] for pair in pairs)
        if alike and (texture.family in taken or texture.family == "plain"):
            texture = random_texture(rng, free[int(rng.integers(len(free)))])
        coloured.append(replace(piece, texture=texture, colour=colours[int(group[index])]))
    return coloured


def paint(rng: np.random.Generator, pieces: list[Piece], mask: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Fill the pieces: uint8 [H, W, 3] BGR. The mean of each piece's visible pixels is its colour, to ±1.

    Light varies smoothly over each piece and sensor noise is added to all pixels; neither changes the mean.
    """
    rows, columns = np.arange(mask.shape[0], dtype=np.float32), np.arange(mask.shape[1], dtype=np.float32)
    frame = np.empty((*mask.shape, 3), np.float32)
    for index, piece in enumerate(pieces):
        inside = mask == index
        at_row, at_column = np.nonzero(inside)
        x, y = columns[at_column] - piece.centre[0], rows[at_row] - piece.centre[1]
        pattern = piece.texture(x, y)
        slope = rng.normal(0, 6.0 / max(mask.shape), 2) * (3.0 if rng.random() < 0.25 else 1.0)
        light = (slope[0] * x + slope[1] * y) * 3.0
        colour = np.asarray(piece.colour, np.float32)
        values = pattern[:, None] * np.asarray(piece.texture.direction, np.float32) + light[:, None]
        values -= values.mean(0)
        # Where values would leave 0…255 all shrink together: clipping some would change the mean.
        room = np.minimum(colour, 255 - colour) - 4
        reach = np.maximum(np.abs(values).max(0), 1e-6)
        frame[inside] = colour + values * min(1.0, float((room / reach).min()))
    noise = float(rng.uniform(0, 4))
    frame += np.asarray(rng.normal(0, 1, frame.shape), np.float32) * noise
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)


def _distinct_colour(rng: np.random.Generator, others: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    # Means stay away from black and white, so that a texture has room on both sides.
    best, best_distance = (128.0, 128.0, 128.0), -1.0
    for _ in range(24):
        grey = rng.uniform(55, 200)
        candidate = np.clip(grey + rng.normal(0, 1, 3) * rng.choice([6, 25, 50]), 45, 210)
        colour = (float(candidate[0]), float(candidate[1]), float(candidate[2]))
        distance = min((_lab_distance(colour, other) for other in others), default=np.inf)
        if distance > best_distance:
            best, best_distance = colour, float(distance)
        if best_distance >= _MIN_COLOUR_STEP:
            break
    return best


def _lab_distance(a: tuple[float, float, float], b: tuple[float, float, float]) -> float:
    pixels = np.array([[a, b]], np.float32) / 255
    lab = cv2.cvtColor(pixels, cv2.COLOR_BGR2LAB)
    return float(np.linalg.norm(lab[0, 0] - lab[0, 1]))


def _half_plane(rng: np.random.Generator, reach: float) -> NDArray[np.float32]:
    """Half of the plane, with a straight or wavy border through the origin."""
    x = np.linspace(-reach, reach, 160)
    rim = rng.uniform(0, 0.04) * reach * np.sin(x * rng.uniform(0.005, 0.05) + rng.uniform(0, 6.3))
    points = np.concatenate([np.stack([x, rim], 1), [[reach, reach], [-reach, reach]]])
    return _turn(points, float(rng.uniform(0, 2 * np.pi)))


def _ellipse(rng: np.random.Generator, radius: float) -> NDArray[np.float32]:
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    flat = float(rng.uniform(0.45, 1.0))
    points = np.stack([np.cos(angle), flat * np.sin(angle)], 1) * radius
    return _turn(points, float(rng.uniform(0, np.pi)))


def _polygon(rng: np.random.Generator, radius: float) -> NDArray[np.float32]:
    corners = int(rng.integers(3, 8))
    angle = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
    distance = radius * rng.uniform(0.7, 1.3, corners)
    return _turn(np.stack([np.cos(angle), np.sin(angle)], 1) * distance[:, None], float(rng.uniform(0, 2 * np.pi)))


def _blob(rng: np.random.Generator, radius: float) -> NDArray[np.float32]:
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    orders = np.arange(2, 7)
    waves = np.cos(angle[:, None] * orders + rng.uniform(0, 2 * np.pi, orders.size))
    distance = radius * np.clip(1 + waves @ (rng.normal(0, 0.3, orders.size) / orders**0.7), 0.3, 1.8)
    return _turn(np.stack([np.cos(angle), np.sin(angle)], 1) * distance[:, None], 0.0)


def _stripe(rng: np.random.Generator, radius: float) -> NDArray[np.float32]:
    half = max(6.0, radius * float(rng.uniform(0.25, 0.5)))
    length = radius * float(rng.uniform(2.0, 5.0))
    points = np.array([[-length, -half], [length, -half], [length, half], [-length, half]])
    return _turn(points, float(rng.uniform(0, np.pi)))


def _turn(points: NDArray[np.float64], angle: float) -> NDArray[np.float32]:
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[c, s], [-s, c]]), np.float32)


_SHAPES = (_ellipse, _polygon, _blob, _blob, _stripe, _polygon)

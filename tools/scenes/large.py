"""Large drawn scenes: areas of many tiles, and small things that are lost where the whole scene is made small."""

from __future__ import annotations

import numpy as np

from tools.scenes.draw import SPLITS, Scene, Split, colour_pieces, paint, place_piece, place_scene
from tools.scenes.draw import mask_of as draw_mask

_TRIES = 40  # places that are looked at for each small thing


def draw_large_scene(
    seed: int, size: tuple[int, int] = (1024, 1024), *, small: int = 14, split: Split = "test"
) -> tuple[Scene, list[int]]:
    """Draw a scene of `size` with areas as in `draw_scene`, and up to `small` small things of one colour each.

    They have radii of 14 to 26 pixels, whatever the size, and are far from borders and from each other.
    Returns the scene, and the values that the small things have in its mask.
    """
    rng = np.random.default_rng([SPLITS[split], seed, 1])
    pieces, mask = place_scene(rng, size)
    pieces = colour_pieces(rng, pieces, mask, 0.3)
    areas = len(pieces)
    taken = np.zeros(size, bool)
    for _ in range(_TRIES * small):
        if len(pieces) == areas + small:
            break
        radius = float(rng.uniform(14, 26))
        x, y = (float(rng.uniform(2 * radius, side - 2 * radius)) for side in reversed(size))
        reach = int(3 * radius)
        around = np.s_[max(0, int(y) - reach) : int(y) + reach, max(0, int(x) - reach) : int(x) + reach]
        if taken[around].any() or len(np.unique(mask[around])) > 1:
            continue
        taken[around] = True
        pieces.append(place_piece(rng, (x, y), radius, pieces[mask[int(y), int(x)]].colour))
    mask = draw_mask(pieces, size)
    return Scene(paint(rng, pieces, mask), mask), list(range(areas, len(pieces)))

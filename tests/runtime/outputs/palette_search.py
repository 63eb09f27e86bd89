"""How the palette's colours were found. `python -m tests.runtime.outputs.palette_search` prints them."""

import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab

COUNT = 64
STEP = 15  # between the levels of red, green and blue that are tried
LIGHTNESS = (30, 88)  # borders are white, and overlays of dark pictures must show black
CHROMA = 30  # at least: a grey would look as if a segment had no colour
FIRST = (225, 30, 30)  # a red
BLOCKS = (16, 32, 64)  # after each of these numbers, colours may be closer
RECENT = 7


def distance(one, other):
    """The smaller of half the CIE 1976 and the CIEDE2000 difference.

    The first exaggerates differences between vivid colours, the second is made for small ones.
    """
    one, other = np.broadcast_arrays(one, other)
    return np.minimum(np.linalg.norm(one - other, axis=-1) / 2, deltaE_ciede2000(one, other))


def search():
    """uint8 [64, 3] RGB: each colour is the one farthest from all before it.

    Within a block, the colours are then put in an order in which each is far from the seven before it.
    """
    levels = np.arange(0, 256, STEP)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = rgb2lab(rgb / 255)
    fit = (lab[:, 0] >= LIGHTNESS[0]) & (lab[:, 0] <= LIGHTNESS[1]) & (np.hypot(lab[:, 1], lab[:, 2]) >= CHROMA)
    rgb, lab = rgb[fit], lab[fit]
    chosen = [int(np.flatnonzero((rgb == FIRST).all(1))[0])]
    nearest = distance(lab, lab[chosen[0]])
    while len(chosen) < COUNT:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance(lab, lab[chosen[-1]]))
    order = chosen[: BLOCKS[0]]
    for end in BLOCKS[1:]:
        left = chosen[len(order) : end]
        while left:
            far = [min(distance(lab[one], lab[order[-RECENT:]])) for one in left]
            order.append(left.pop(int(np.argmax(far))))
    return rgb[order].astype(np.uint8)


if __name__ == "__main__":
    print("".join(f"{red:02x}{green:02x}{blue:02x}" for red, green, blue in search()))

"""`python -m tools.pictures.photographs`: photographs and their segments, in one picture.

The photographs come with scikit-image and are free of rights: the astronaut (NASA, public domain), the cup of coffee
(CC0, Rachel Michetti), the cat (CC0, Stefan van der Walt) and the rocket (SpaceX, public domain).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np
import typer

from runtime.terminal import run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.segmenter import Segmenter

PICTURE = Path(__file__).with_name("photographs.png")
NAMES, HEIGHT, GAP = ("astronaut", "coffee", "chelsea", "rocket"), 168, 4


def draw_sheet(segmenter: Segmenter, names: tuple[str, ...] = NAMES) -> NDArray[np.uint8]:
    """Photographs of `skimage.data` in columns, their segments below: uint8 [H, W, 3] BGR."""
    import skimage.data

    from runtime.outputs.draw import draw_overlay

    columns = []
    for name in names:
        frame = np.asarray(cv2.cvtColor(getattr(skimage.data, name)(), cv2.COLOR_RGB2BGR), np.uint8)
        size = (round(HEIGHT * frame.shape[1] / frame.shape[0]), HEIGHT)
        small = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
        labels = cv2.resize(segmenter(frame).labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        cells = [small, draw_overlay(small, np.asarray(labels, np.int32))]
        columns.append(np.vstack([np.pad(cell, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=255) for cell in cells]))
    return np.asarray(np.hstack(columns), np.uint8)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(output: Annotated[Path, typer.Option(help="Picture to write, .png.")] = PICTURE) -> None:
    """Draw the README's picture of photographs and their segments."""
    from runtime.files import write_atomically
    from runtime.segmenter import Segmenter

    encoded = cv2.imencode(".png", draw_sheet(Segmenter.open()), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    write_atomically(output, encoded.tobytes())


if __name__ == "__main__":
    run(app, "python -m tools.pictures.photographs", "evaluate")

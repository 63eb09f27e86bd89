"""`python -m tools.pictures.video`: draws frames of a moving scene without and with identities, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np
import typer

from runtime.terminal import run
from tools.scenes.moving import draw_moving_scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.segmenter import Segmenter

PICTURE = Path(__file__).with_name("moving_scene.png")
SEED, TIMES, WIDTH = 104, (2, 6, 10, 14, 18), 160


def draw_strip(segmenter: Segmenter, seed: int = SEED, times: tuple[int, ...] = TIMES) -> NDArray[np.uint8]:
    """A column per frame number in `times`: the frame, its segments, and its identities; uint8 [H, W, 3] BGR."""
    from runtime.outputs.draw import borders
    from runtime.outputs.palette import palette

    scene = draw_moving_scene(seed, split="test")
    frames = list(scene.frames(max(times) + 1))
    tracked = list(segmenter.stream(frames))
    columns = []
    for time in times:
        cells = [frames[time]]
        for labels in (segmenter(frames[time]).labels, tracked[time].labels):
            coloured = palette(int(labels.max()) + 1)[labels]
            coloured[borders(labels, 2)] = 255
            cells.append(coloured)
        height = round(WIDTH * scene.size[0] / scene.size[1])
        small = [cv2.resize(cell, (WIDTH, height), interpolation=cv2.INTER_AREA) for cell in cells]
        columns.append(np.vstack([np.pad(cell, ((2, 2), (2, 2), (0, 0)), constant_values=255) for cell in small]))
    return np.asarray(np.hstack(columns), np.uint8)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(output: Annotated[Path, typer.Option(help="Picture to write, .png.")] = PICTURE) -> None:
    """Draw the README's picture of a moving scene's frames and segments."""
    from runtime.files import write_atomically
    from runtime.segmenter import Segmenter

    encoded = cv2.imencode(".png", draw_strip(Segmenter.open()), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    write_atomically(output, encoded.tobytes())


if __name__ == "__main__":
    run(app, "python -m tools.pictures.video", "video")

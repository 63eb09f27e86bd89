"""`python -m tools.attend photo.jpg --at 120,80`: the segment under a pixel, and where its token looks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import UsageError
from runtime.terminal import run
from tools.command import single_command


def attend(
    photo: Annotated[Path, typer.Argument(help="A picture.")],
    at: Annotated[list[str], typer.Option(metavar="X,Y", help="A pixel; may be given several times.")],
    engine: Annotated[Path | None, typer.Option(help="Engine file; the embedded default if left out.")] = None,
    threshold: Annotated[float | None, typer.Option(help="KL threshold; the engine's own if left out.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("attended"),
) -> None:
    """Run the network once, then click: writes <name>_<x>_<y>.png, the segment on the left, its attention on the right.

    Prints how long each click took, and the segmentation and the hierarchy of the frame (medians of 9 calls).
    """
    import cv2
    import numpy as np

    from runtime.frames.decode import read_frame
    from runtime.outputs.png import write_png
    from runtime.segmenter import Segmenter

    points = [_point(text) for text in at]
    frame = read_frame(photo)
    began = time.perf_counter()
    attended = Segmenter.open(engine).attend(frame)
    print(f"network and what is kept: {1e3 * (time.perf_counter() - began):.0f} ms, once")
    for x, y in points:
        clicked = attended.at(x, y, threshold)
        shown = np.where(clicked.mask[..., None], frame, frame // 4)
        strength = 255 * clicked.attention / clicked.attention.max()
        heat = cv2.applyColorMap(strength.astype(np.uint8), cv2.COLORMAP_INFERNO)
        path = output / f"{photo.stem}_{x}_{y}.png"
        write_png(path, np.hstack([shown, cv2.addWeighted(frame, 0.3, heat, 0.7, 0)]), flat=False)
        print(f"{x},{y}: segment {clicked.index}, {int(clicked.mask.sum())} pixels: {path}")
    # Thresholds that differ a little, since the last result is kept.
    start = threshold or 0.5
    calls: dict[str, Callable[[int], object]] = {
        "labels": lambda number: attended.labels(start + 1e-6 * (1 + number)),
        "at": lambda number: attended.at(*points[number % len(points)], threshold),
        "hierarchy": lambda number: attended.hierarchy(),
    }
    figures = ", ".join(f"{name} {_median(call):.1f}" for name, call in calls.items())
    print(f"milliseconds at {attended.pyramid[0].shape[0]} tokens: {figures}")


def _point(text: str) -> tuple[int, int]:
    try:
        x, y = map(int, text.split(","))
    except ValueError:
        raise UsageError(f"--at: expected a pixel x,y such as 120,80, found {text!r}") from None
    return x, y


def _median(call: Callable[[int], object]) -> float:
    times = []
    for number in range(9):
        began = time.perf_counter()
        call(number)
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


app = single_command(attend)

if __name__ == "__main__":
    run(app, "python -m tools.attend")

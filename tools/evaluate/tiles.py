"""`python -m tools.evaluate tiles`: large drawn scenes in tiles, against one pass over the whole scene."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tools.evaluate import metrics
from tools.scenes.large import draw_large_scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.segmenter import Segmenter

NEAR = 2  # pixels on either side of a seam line that count as on it


def found_share(mask: NDArray[Any], labels: NDArray[Any], small: list[int]) -> float:
    """Share of the small things that are found: a segment has half of it, and is at most four times as large."""
    table = metrics.contingency(mask, labels)
    regions, segments = table.sum(axis=1), table.sum(axis=0)
    hits = (table >= 0.5 * regions[:, None]) & (segments <= 4 * regions[:, None])
    return float(hits[small].any(axis=1).mean())


def border_shares(labels: NDArray[Any], seams: tuple[list[int], list[int]]) -> tuple[float, float]:
    """Share of neighbouring pixels that a border parts: across the middles of the tiles' overlaps, and elsewhere.

    `seams`: rows of horizontal lines, and columns of upright ones.
    """
    parted: dict[bool, list[NDArray[Any]]] = {True: [], False: []}
    for axis, lines in enumerate(seams):
        borders = (np.diff(labels, axis=axis) != 0).mean(axis=1 - axis)
        near = np.zeros(len(borders), bool)
        for line in lines:
            near[line - NEAR : line + NEAR] = True
        for on in (True, False):
            parted[on].append(borders[near == on])
    return float(np.concatenate(parted[True]).mean()), float(np.concatenate(parted[False]).mean())


def measure(segmenter: Segmenter, size: tuple[int, int], count: int, tiles: str | tuple[int, int]) -> dict[str, Any]:
    """Means over scenes: of the untiled run, of the one in tiles, and of the true segments."""
    from runtime.tiles.layout import place_tiles

    own = segmenter.engine.spec
    axes = place_tiles(size, (own.height, own.width), tiles)
    lines = [
        [(one + axis.side + other) // 2 for one, other in zip(axis.starts, axis.starts[1:], strict=False)]
        for axis in axes
    ]
    rows: dict[str, list[list[float]]] = {"whole": [], "tiles": [], "truth": []}
    for seed in range(count):
        scene, small = draw_large_scene(seed, size)
        for name, how in (("whole", None), ("tiles", tiles), ("truth", None)):
            began = time.perf_counter()
            labels = scene.mask if name == "truth" else segmenter(scene.frame, tiles=how).labels
            seconds = time.perf_counter() - began
            covering = metrics.covering(metrics.contingency(scene.mask, labels))
            shares = border_shares(labels, (lines[0], lines[1]))
            rows[name].append([covering, found_share(scene.mask, labels, small), *shares, labels.max() + 1, seconds])
    keys = ("covering", "found", "borders_on_seams", "borders_elsewhere", "segments", "seconds")
    return {
        name: dict(zip(keys, np.mean(values, axis=0).round(5).tolist(), strict=True)) for name, values in rows.items()
    }


def tiles(
    engine: Annotated[Path | None, typer.Option(help="Engine file; default: the embedded one.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 10,
    side: Annotated[int, typer.Option(min=256, help="Side of a scene in pixels.")] = 1024,
    layout: Annotated[str, typer.Option(metavar="auto|RxC", help="Tiles.")] = "auto",
    picture: Annotated[Path | None, typer.Option(help="Draw the first scene and its segments (.png).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table.")] = False,
) -> None:
    """Covering of large drawn scenes in tiles and in one pass, small things found, and borders on seam lines."""
    from rich.console import Console
    from rich.table import Table

    from runtime.outputs.draw import draw_overlay
    from runtime.outputs.png import write_png
    from runtime.segmenter import Segmenter
    from runtime.tiles.layout import parse_tiles

    placed = parse_tiles(layout)
    segmenter = Segmenter.open(engine)
    with Console(stderr=True).status(f"measuring on {count} scenes"):
        results = measure(segmenter, (side, side), count, placed)
    if picture is not None:
        frame = draw_large_scene(0, (side, side))[0].frame
        overlays = [draw_overlay(frame, segmenter(frame, tiles=how).labels) for how in (None, placed)]
        write_png(picture, np.hstack([frame, *overlays]), flat=False)
    if as_json:
        print(json.dumps({"scenes": count, "side": side, "layout": layout, **results}))
        return
    table = Table(title=f"{count} drawn scenes of {side}x{side}")
    for column in ("", "covering", "small things found", "borders on seams", "elsewhere", "segments", "s a scene"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in results.items():
        on, elsewhere = row["borders_on_seams"], row["borders_elsewhere"]
        table.add_row(
            name,
            f"{row['covering']:.3f}",
            f"{row['found']:.0%}",
            f"{on:.2%}",
            f"{elsewhere:.2%}",
            f"{row['segments']:.1f}",
            f"{row['seconds']:.2f}",
        )
    Console().print(table)

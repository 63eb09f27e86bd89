"""`python -m tools.evaluate scenes`: covering on drawn scenes, against simple and classical methods."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from runtime.refine.registry import DEFAULT_PIECES
from tools.evaluate import metrics
from tools.evaluate.classical import METHODS, ClassicalMethod
from tools.scenes.draw import Split, draw_scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.segmenter import Segmenter


def measure(methods: dict[str, ClassicalMethod], count: int, split: Split) -> dict[str, Any]:
    """Mean covering of every method on `count` scenes of 256×256, in which half of the neighbours share a mean colour.

    Per method the mean covering, segments and seconds per frame, and the covering of every scene.
    """
    scores: dict[str, list[tuple[float, int, float]]] = {name: [] for name in methods}
    for seed in range(count):
        scene = draw_scene(seed, (256, 256), share=0.5, split=split)
        for name, method in methods.items():
            started = time.perf_counter()
            labels = method(scene.frame)
            seconds = time.perf_counter() - started
            scores[name].append(
                (metrics.covering(metrics.contingency(scene.mask, labels)), len(np.unique(labels)), seconds)
            )
    return {
        name: {
            "covering": round(float(np.mean([c for c, _, _ in rows])), 4),
            "segments": round(float(np.mean([k for _, k, _ in rows])), 2),
            "seconds": round(float(np.mean([s for _, _, s in rows])), 4),
            "coverings": [round(c, 4) for c, _, _ in rows],
        }
        for name, rows in scores.items()
    }


def _write_strip(path: Path, frames: list[NDArray[np.uint8]], segmenter: Segmenter) -> None:
    """Write frames of one size side by side, and their segments below them, at half size."""
    import cv2

    from runtime.outputs.draw import draw_overlay
    from runtime.outputs.png import write_png

    overlays = [draw_overlay(frame, segmenter(frame).labels) for frame in frames]
    picture = np.vstack([np.hstack(frames), np.hstack(overlays)])
    write_png(path, np.asarray(cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8))


def scenes(
    engine: Annotated[Path | None, typer.Option(help="Engine file; default: the embedded one.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 50,
    development: Annotated[
        bool, typer.Option("--development", help="Use the scenes for choosing settings, not those for reporting.")
    ] = False,
    threshold: Annotated[
        str | None, typer.Option(help="KL threshold, one per iteration, or auto; default: the engine's own.")
    ] = None,
    refine: Annotated[str, typer.Option(help="As of diffseg segment.")] = "none",
    pieces: Annotated[str, typer.Option(help="As of diffseg segment.")] = DEFAULT_PIECES,
    worst: Annotated[Path | None, typer.Option(help="Write DiffSeg's six worst scenes as a picture (.png).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table.")] = False,
) -> None:
    """Covering on drawn scenes that no training has seen. Half of the neighbouring regions differ in texture alone."""
    from rich.console import Console
    from rich.table import Table

    from runtime.options import thresholds_of
    from runtime.segmenter import Segmenter

    segmenter = Segmenter.open(engine, thresholds=thresholds_of(threshold), refine=refine, pieces=pieces)
    methods: dict[str, ClassicalMethod] = {"diffseg": lambda frame: segmenter(frame).labels, **METHODS}
    split: Split = "development" if development else "test"
    with Console(stderr=True).status(f"measuring on {count} scenes"):
        results = measure(methods, count, split)
    if worst is not None:
        least = np.argsort(results["diffseg"]["coverings"], kind="stable")[:6]
        _write_strip(worst, [draw_scene(int(seed), share=0.5, split=split).frame for seed in least], segmenter)
    if as_json:
        print(json.dumps({"scenes": count, "split": split, "methods": results}))
        return
    table = Table(title=f"{count} drawn scenes ({split})")
    for column in ("method", "covering", "segments", "ms a frame"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, row in results.items():
        table.add_row(name, f"{row['covering']:.3f}", f"{row['segments']:.1f}", f"{1000 * row['seconds']:.0f}")
    Console().print(table)

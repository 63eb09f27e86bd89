"""Measure segmentations against known truth: ``python -m tools.evaluate scenes``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cv2
import numpy as np
import typer

from tools.agreement import agreement
from tools.scenes import Split, draw_scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Method = Callable[[NDArray[np.uint8]], NDArray[np.int32]]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(agreement)


def covering(truth: NDArray[np.int32], labels: NDArray[np.int32]) -> float:
    """Covering of ``truth`` by ``labels``, both int [H, W] and ≥ 0: Σ_R |R|/N · max_S IoU(R, S), 0…1.

    Arbeláez et al., "Contour Detection and Hierarchical Image Segmentation", PAMI 2011, section 3.1.

    Raises:
        ValueError: the shapes differ or a value is negative.
    """
    if truth.shape != labels.shape or truth.min() < 0 or labels.min() < 0:
        raise ValueError(
            f"covering compares two maps of one shape with values ≥ 0: got {truth.shape} and {labels.shape}"
        )
    _, rows = np.unique(truth, return_inverse=True)
    _, columns = np.unique(labels, return_inverse=True)
    shape = (int(rows.max()) + 1, int(columns.max()) + 1)
    counts = np.bincount(rows.ravel() * shape[1] + columns.ravel(), minlength=shape[0] * shape[1])
    common = counts.reshape(shape).astype(np.float64)
    regions, segments = common.sum(1), common.sum(0)
    overlap = common / (regions[:, None] + segments - common)
    return float((regions * overlap.max(1)).sum() / regions.sum())


def one_segment(frame: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The whole frame as one segment: int32 [H, W], all 0."""
    return np.zeros(frame.shape[:2], np.int32)


def kmeans_lab(frame: NDArray[np.uint8], clusters: int = 6) -> NDArray[np.int32]:
    """K-means on the pixels' Lab colours, seeded alike on every call: int32 [H, W]."""
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_BGR2LAB).reshape(-1, 3)
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 0.1)
    labels = cv2.kmeans(lab, clusters, np.empty(0, np.int32), stop, 3, cv2.KMEANS_PP_CENTERS)[1]
    return labels.reshape(frame.shape[:2]).astype(np.int32)


def felzenszwalb(frame: NDArray[np.uint8], scale: float = 400) -> NDArray[np.int32]:
    """Felzenszwalb and Huttenlocher's graph segmentation as scikit-image has it: int32 [H, W]."""
    from skimage.segmentation import felzenszwalb as segment

    return np.asarray(segment(frame[..., ::-1], scale=scale), np.int32)


def measure(methods: dict[str, Method], count: int, split: Split) -> dict[str, Any]:
    """Mean covering of every method on ``count`` held-out scenes of 256×256 in which half of the neighbours share
    their mean colour; per method also the number of segments, seconds a frame and every scene's covering."""
    scores: dict[str, list[tuple[float, int, float]]] = {name: [] for name in methods}
    for seed in range(count):
        scene = draw_scene(seed, (256, 256), share=0.5, split=split)
        for name, method in methods.items():
            started = time.perf_counter()
            labels = method(scene.frame)
            seconds = time.perf_counter() - started
            scores[name].append((covering(scene.mask, labels), len(np.unique(labels)), seconds))
    return {
        name: {
            "covering": round(float(np.mean([c for c, _, _ in rows])), 4),
            "segments": round(float(np.mean([k for _, k, _ in rows])), 2),
            "seconds": round(float(np.mean([s for _, _, s in rows])), 4),
            "coverings": [round(c, 4) for c, _, _ in rows],
        }
        for name, rows in scores.items()
    }


@app.callback()
def _programs() -> None:
    """Measure segmentations against known truth."""


@app.command()
def scenes(
    engine: Annotated[Path | None, typer.Option(help="Engine file; default: the embedded one.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 50,
    development: Annotated[
        bool, typer.Option("--development", help="The scenes to choose settings on, not those to report.")
    ] = False,
    threshold: Annotated[float | None, typer.Option(help="KL threshold; default: the engine's own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table.")] = False,
) -> None:
    """Covering on drawn scenes that no training has seen; half of the neighbours differ in texture alone."""
    from rich.console import Console
    from rich.table import Table

    from runtime.errors import DiffSegError
    from runtime.segmenter import Segmenter

    try:
        segmenter = Segmenter.open(engine, thresholds=threshold)
    except DiffSegError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    methods: dict[str, Method] = {
        "DiffSeg": lambda frame: segmenter(frame).labels,
        "one segment": one_segment,
        "K-means in Lab (k = 6)": kmeans_lab,
        "Felzenszwalb (scale 400)": felzenszwalb,
    }
    split: Split = "development" if development else "test"
    with Console(stderr=True).status(f"measuring on {count} scenes"):
        results = measure(methods, count, split)
    if as_json:
        print(json.dumps({"scenes": count, "split": split, "methods": results}))
        return
    table = Table(title=f"{count} drawn scenes ({split})")
    for column in ("method", "covering", "segments", "ms a frame"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, row in results.items():
        table.add_row(name, f"{row['covering']:.3f}", f"{row['segments']:.1f}", f"{1000 * row['seconds']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    app()

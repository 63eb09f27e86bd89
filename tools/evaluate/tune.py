"""`python -m tools.evaluate tune`: settings of the classical methods, chosen on pictures that are for choosing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from runtime.errors import DiffSegError
from runtime.terminal import check_extra
from tools.evaluate import metrics
from tools.evaluate.classical import METHODS
from tools.scenes.draw import draw_scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Picture = tuple[NDArray[np.uint8], list[NDArray[np.int32]]]  # a frame, and what annotators drew

LISTS = Path(__file__).with_name("lists")  # the images of the tables in tools/README.md
GRIDS: dict[str, dict[str, Sequence[float]]] = {
    "felzenszwalb": {"scale": (100, 200, 400, 700, 1000, 1500), "min_size": (20, 250, 500, 1000, 2000)},
    "mean-shift": {"space": (8, 16, 24), "colour": (16, 24, 32), "smallest": (150, 600, 1500)},
    "slic-merged": {"pieces": (400,), "compactness": (10, 20), "threshold": (15, 20, 25, 30, 40)},
    "kmeans-lab": {"clusters": (2, 3, 4, 5, 6, 8)},
}


def settings(method: str) -> Iterator[dict[str, float]]:
    """All combinations of a method's grid."""
    grid = GRIDS[method]
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def sweep(method: str, picture: Picture) -> list[float]:
    """The covering of one picture with each of the settings, mean over its annotators."""
    import cv2

    cv2.setNumThreads(1)
    frame, truths = picture
    found = []
    for setting in settings(method):
        labels = METHODS[method](frame, **setting)
        found.append(np.mean([metrics.covering(metrics.contingency(truth, labels)) for truth in truths]))
    return [float(value) for value in found]


def tune(
    bsds500: Annotated[Path | None, typer.Option(help="BSDS500, of which 40 training images are taken.")] = None,
    camvid: Annotated[Path | None, typer.Option(help="CamVid, of which 11 validation frames are taken.")] = None,
    scenes: Annotated[int, typer.Option(min=0, help="Drawn scenes for choosing settings.")] = 50,
    method: Annotated[list[str] | None, typer.Option(help=f"{', '.join(GRIDS)}; all by default.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="All settings as JSON on stdout instead of a table.")] = False,
) -> None:
    """Try settings of the classical methods; the best has the largest mean of the sets' mean coverings."""
    from rich.console import Console
    from rich.table import Table

    check_extra("evaluate")
    if unknown := set(method or ()) - set(GRIDS):
        raise DiffSegError(f"--method: expected {', '.join(GRIDS)}, found {', '.join(sorted(unknown))}")
    sets = _pictures(bsds500, camvid, scenes)
    if not sets:
        raise DiffSegError("expected --bsds500, --camvid or --scenes, found nothing to choose on")
    everything: dict[str, list[dict[str, Any]]] = {}
    for name in method or GRIDS:
        with Console(stderr=True).status(f"trying settings of {name}"), ExitStack() as stack:
            mapped: Any = map
            if jobs > 1:
                mapped = stack.enter_context(ProcessPoolExecutor(jobs, get_context("spawn"))).map
            means = [np.mean(list(mapped(sweep, [name] * len(one), one)), axis=0) for one in sets.values()]
        everything[name] = [
            {"settings": setting, "covering": round(float(np.mean(values)), 4)}
            | {one: round(float(value), 4) for one, value in zip(sets, values, strict=True)}
            for setting, values in zip(settings(name), np.transpose(means), strict=True)
        ]
        everything[name].sort(key=lambda row: -row["covering"])
    if as_json:
        print(json.dumps(everything))
        return
    table = Table(title="best settings, mean covering")
    for column in ("method", "settings", "mean", *sets):
        table.add_column(column, justify="left" if column in ("method", "settings") else "right")
    for name, rows in everything.items():
        for row in rows[:3]:
            table.add_row(name, describe(row["settings"]), *(f"{row[key]:.3f}" for key in ("covering", *sets)))
    Console().print(table)


def describe(setting: dict[str, Any]) -> str:
    """Settings as text."""
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


def _pictures(bsds500: Path | None, camvid: Path | None, scenes: int) -> dict[str, list[Picture]]:
    from tools.evaluate.datasets import open_dataset

    found: dict[str, list[Picture]] = {}
    if bsds500 is not None:
        data = open_dataset("bsds500", bsds500, split="train", only=LISTS / "bsds500-development.txt")
        found["BSDS500"] = [data.load(sample) for sample in data.samples]
    if camvid is not None:
        data = open_dataset("camvid", camvid, split="val", only=LISTS / "camvid.txt", every=2, partial=True)
        found["CamVid"] = [data.load(sample) for sample in data.samples]
    if scenes:
        drawn = [draw_scene(seed, (256, 256), share=0.5, split="development") for seed in range(scenes)]
        found["scenes"] = [(scene.frame, [scene.mask]) for scene in drawn]
    return found

"""`python -m tools.tiny engine --photos DIR --output FOLDER`: the embedded engine from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tools.tiny.mean import mean
from tools.tiny.merge import merge
from tools.tiny.train import train
from tools.tiny.tune import tune

TIMESTEP, THRESHOLDS = 300, (0.6, 0.6, 0.6)
FURTHER: dict[str, Any] = {"steps": 2200, "rate": 3e-4, "whole_after": 0.2}  # of the second tuning
# A few steps of everything: a model of random maps, in a minute.
REHEARSAL: dict[str, dict[str, Any]] = {
    "train": {"size": "test", "steps": 2, "autoencoder_steps": 2, "scenes": (3, 3), "texture_scenes": 2, "batch": 4},
    "tune": {"steps": 2, "views": 2, "batch": 2},
    "further": {"steps": 1},
}


def engine(
    photos: Annotated[Path, typer.Option(help="Folder of photographs, searched with all its subfolders.")],
    output: Annotated[Path, typer.Option(help="Folder to write: tiny.onnx, tiny-merge.onnx, and the models.")],
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    rehearse: Annotated[bool, typer.Option(help="A few steps of each stage, to see that all of them run.")] = False,
) -> None:
    """Train, tune and export the embedded engine. Run it again to continue after an interruption.

    It takes several hours of one core.
    """
    from export.engine import ExportRequest, export_engine
    from export.model.load import quiet_libraries

    quiet_libraries()
    output = output / "rehearsal" if rehearse else output  # whose models are of another size
    model, tuned, further, tiny = (output / name for name in ("model", "tuned", "further", "tiny"))
    path = output / "tiny.onnx"
    few = REHEARSAL if rehearse else {"train": {}, "tune": {}, "further": {}}
    train(photos=photos, output=model, seed=seed, threads=threads, **few["train"])
    tune(model, photos=photos, output=tuned, seed=seed, threads=threads, **few["tune"])
    again = few["tune"] | FURTHER | few["further"]
    # Other pictures of the same views, whose segmentations take over an hour.
    tune(tuned, photos=photos, output=further, seed=seed + 1, threads=threads, views_of=tuned, **again)
    mean(tuned, further, tiny)
    request = ExportRequest(model=str(tiny), compact=True, timestep=TIMESTEP, thresholds=THRESHOLDS, auto=True)
    export_engine(request, path)
    merge(path, output / "tiny-merge.onnx")
    typer.echo(f"wrote {path} and {output / 'tiny-merge.onnx'}")

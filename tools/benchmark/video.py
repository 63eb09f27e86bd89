"""`python -m tools.benchmark video`: do identities stay on their objects, on drawn scenes and on real clips?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from runtime.errors import DiffSegError
from tools.benchmark.common import say
from tools.benchmark.identities import FRAME_BY_FRAME, LONG, TEMPORAL, Truth, flow_truth, measure_clips
from tools.scenes.moving import draw_moving_scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tools.scenes.draw import Split

SCENE_SHARE, CLIP_SHARE, SEGMENTS_WITHIN = 0.95, 0.90, 0.2
CLIP_WIDTH = 640
FORMATS = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v")


def read_clip(path: Path, count: int) -> list[NDArray[np.uint8]]:
    """The first `count` frames, at most 640 pixels wide; fewer where the clip is shorter."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    frames: list[NDArray[np.uint8]] = []
    while len(frames) < count:
        good, frame = capture.read()
        if not good:
            break
        height, width = frame.shape[:2]
        if width > CLIP_WIDTH:
            size = (CLIP_WIDTH, round(height * CLIP_WIDTH / width))
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        frames.append(np.asarray(frame, np.uint8))
    capture.release()
    return frames


def missed(report: dict[str, Any]) -> list[str]:
    """The budgets that are missed, one sentence each."""
    faults = []
    for group, least in (("scenes", SCENE_SHARE), ("clips", CLIP_SHARE)):
        if group not in report:
            continue
        ours, plain = report[group][TEMPORAL], report[group][FRAME_BY_FRAME]
        if ours["kept"] < least:
            faults.append(f"{group}: {ours['kept']:.3f} of the pixels keep their identity, wanted {least}")
        if ours.get("covering", 1.0) < plain.get("covering", 0.0):
            faults.append(f"{group}: covering {ours['covering']:.4f}, frame by frame {plain['covering']:.4f}")
        if group == "scenes" and abs(ours["segments"] / plain["segments"] - 1) > SEGMENTS_WITHIN:
            faults.append(f"{group}: {ours['segments']:.1f} segments, frame by frame {plain['segments']:.1f}")
    return faults


def video(
    engine: Annotated[Path | None, typer.Option(help="Engine file; default: the embedded one.")] = None,
    clips: Annotated[Path | None, typer.Option(help="Folder of real clips, searched for video files.")] = None,
    scenes: Annotated[int, typer.Option(min=1, help="Number of moving drawn scenes.")] = 10,
    frames: Annotated[int, typer.Option(min=LONG + 2, help="Frames of each scene and clip.")] = 24,
    development: Annotated[
        bool, typer.Option("--development", help="Use the scenes for choosing settings, not those for reporting.")
    ] = False,
    auto: Annotated[bool, typer.Option("--auto", help="With the threshold auto, not the engine's numbers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
) -> None:
    """Do identities stay on their objects? On moving drawn scenes, and on real clips.

    Exit 1: a budget is missed.
    """
    from rich.console import Console

    from runtime.engine.registry import open_engine
    from runtime.segmenter import Segmenter

    files = [] if clips is None else sorted(path for path in clips.rglob("*") if path.suffix.lower() in FORMATS)
    if clips is not None and not files:
        raise DiffSegError(f"{clips}: expected video files ({', '.join(FORMATS)}), found none; name another folder")
    segmenter = Segmenter(open_engine(engine), auto=auto)
    split: Split = "development" if development else "test"
    report: dict[str, Any] = {"engine": str(engine or "embedded"), "frames": frames, "split": split}
    with Console(stderr=True).status("measuring") as status:
        drawn = {}
        for seed in range(scenes):
            scene = draw_moving_scene(seed, split=split)
            steps = [scene.origins(time, time - 1) for time in range(1, frames)]
            leaps = [scene.origins(time, time - LONG) for time in range(LONG, frames)]
            masks = [scene.mask(time) for time in range(frames)]
            drawn[f"scene {seed}"] = (list(scene.frames(frames)), Truth(steps, leaps, masks))
        report["scenes"] = measure_clips(segmenter, drawn, status.update)
        del drawn
        if files:
            real = {}
            for path in files:
                status.update(f"{path.name}: flow")
                shown = read_clip(path, frames)
                if len(shown) < 2:
                    say(f"warning: {path}: expected two frames or more, found {len(shown)}; the clip is left out")
                    continue
                real[str(path.relative_to(clips or path))] = (shown, flow_truth(shown))
            if real:
                report["clips"] = measure_clips(segmenter, real, status.update)
    report["missed"] = missed(report)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report)
    raise typer.Exit(1 if report["missed"] else 0)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    titles = {"scenes": f"moving drawn scenes ({report['split']})", "clips": "real clips (motion by optical flow)"}
    names = {
        "kept": "identity kept",
        "kept_long": f"over {LONG} frames",
        "covering": "covering",
        "segments": "segments",
    }
    for group, title in titles.items():
        if group not in report:
            continue
        rows = report[group]
        columns = {key: name for key, name in names.items() if key in rows[TEMPORAL]}
        count = len(rows[TEMPORAL]["clips"])
        table = Table(title=f"{count} {title}, {report['frames']} frames each")
        table.add_column("method")
        for name in columns.values():
            table.add_column(name, justify="right")
        for method, row in rows.items():
            cells = [f"{row[key]:.1f}" if key == "segments" else f"{row[key]:.3f}" for key in columns]
            table.add_row(method, *cells, style="bold" if method == TEMPORAL else None)
        console.print(table)
        worst = min(rows[TEMPORAL]["clips"].items(), key=lambda item: item[1]["kept"])
        console.print(f"temporal identity, worst clip: {worst[0]}, {worst[1]['kept']:.3f}", highlight=False)
    for fault in report["missed"]:
        console.print(f"MISSED: {fault}", style="bold red", highlight=False)
    if not report["missed"]:
        console.print("Within budget", style="green")

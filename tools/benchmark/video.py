"""`python -m tools.benchmark video`: do identities stay on their objects?

A pixel's identity is compared with that of the pixel it came from in the frame before. On drawn scenes the motion is
known exactly; on real clips it is an optical flow finer than the tracker's own, where forward and backward flow agree.
An identity that never changes is worth nothing by itself: the covering says whether the segments are still the scene's,
and the number of segments that none were given up.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
import typer

from tools.scenes.moving import draw_moving_scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.engine.base import Engine
    from runtime.segmenter import Segmenter

    Frames = Sequence[NDArray[np.uint8]]
    Labels = list[NDArray[np.int32]]

SCENE_SHARE, CLIP_SHARE, SEGMENTS_WITHIN = 0.95, 0.90, 0.2
LONG = 10  # frames over which identities are compared a second time
CLIP_WIDTH = 640
FORMATS = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v")

FRAME_BY_FRAME, FIRST_FLOW, TEMPORAL = "frame by frame", "flow of the first frame", "temporal identity"
MATCHED = "frame by frame, matched"


@dataclass(frozen=True, slots=True)
class Truth:
    """Where the pixels of a clip come from.

    Attributes:
        steps: for every frame but the first: float32 [H, W, 2] (x, y) in the frame before, and bool [H, W] where that
            is known and was in sight.
        leaps: the same for every frame from `LONG` on, over so many frames; empty for real clips.
        masks: int32 [H, W] for every frame; empty for real clips.
    """

    steps: list[tuple[NDArray[np.float32], NDArray[np.bool_]]]
    leaps: list[tuple[NDArray[np.float32], NDArray[np.bool_]]]
    masks: list[NDArray[np.int32]]


def kept_share(
    labels: NDArray[np.int32],
    before: NDArray[np.int32],
    origins: NDArray[np.float32],
    known: NDArray[np.bool_],
) -> float:
    """Share of the pixels with a known origin whose identity is that of the pixel they came from, 0…1."""
    height, width = labels.shape
    x = np.rint(origins[..., 0]).astype(int).clip(0, width - 1)
    y = np.rint(origins[..., 1]).astype(int).clip(0, height - 1)
    return float((before[y, x] == labels)[known].mean()) if known.any() else 1.0


def first_flow(first: NDArray[np.int32], frames: Frames) -> Labels:
    """The first frame's labels, carried along the optical flow of the whole clip."""
    import cv2

    found = [first]
    estimate = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    for before, now in pairwise(frames):
        x, y = _origins(estimate, before, now)
        carried = cv2.remap(found[-1].astype(np.float32), x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        found.append(carried.astype(np.int32))
    return found


class RememberingEngine:
    """An engine that runs once on each frame of a clip, whoever asks: all methods then see the same maps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: dict[bytes, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def infer(self, frames: NDArray[np.uint8], *thresholds: Any) -> Any:
        """What the engine itself gives."""
        key = frames.tobytes()
        if key not in self._seen:
            self._seen[key] = self._engine.infer(frames, *thresholds)
        return self._seen[key]

    def forget(self) -> None:
        """Before another clip, for maps take room."""
        self._seen.clear()


def run_methods(segmenter: Segmenter, frames: Frames) -> dict[str, Labels]:
    """Identities by every method: each frame's own numbers; those matched by the tracker without its memory; the first
    frame's, carried along; and what `Segmenter.stream` gives."""
    from runtime.track.tracker import Tracker, TrackerConfig

    single = [segmenter(frame, proposals=True) for frame in frames]
    forgetful = Tracker(TrackerConfig(memory=0.0))
    return {
        FRAME_BY_FRAME: [result.labels for result in single],
        MATCHED: [forgetful.update(frame, result).labels for frame, result in zip(frames, single, strict=True)],
        FIRST_FLOW: first_flow(single[0].labels, frames),
        TEMPORAL: [result.labels for result in segmenter.stream(frames)],
    }


def score(labels: Labels, truth: Truth) -> dict[str, float]:
    """Of one clip: mean share of kept identities, the same over `LONG` frames, covering, and segments a frame."""
    from tools.evaluate.metrics import contingency, covering

    steps = zip(labels[1:], labels[:-1], truth.steps, strict=True)
    row = {"kept": float(np.mean([kept_share(now, before, *known) for now, before, known in steps]))}
    if truth.leaps:
        leaps = zip(labels[LONG:], labels[:-LONG], truth.leaps, strict=True)
        row["kept_long"] = float(np.mean([kept_share(now, before, *known) for now, before, known in leaps]))
    if truth.masks:
        tables = (contingency(mask, found) for mask, found in zip(truth.masks, labels, strict=True))
        row["covering"] = float(np.mean([covering(table) for table in tables]))
    row["segments"] = float(np.mean([len(np.unique(found)) for found in labels]))
    row["identities"] = float(len(np.unique(np.concatenate([np.unique(found) for found in labels]))))
    return row


def flow_truth(frames: Frames) -> Truth:
    """Origins by a finer flow than the tracker's, at the clip's size, where the way back ends within a pixel."""
    import cv2

    estimate = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    steps = []
    for before, now in pairwise(frames):
        x, y = _origins(estimate, before, now)
        there_x, there_y = _origins(estimate, now, before)
        outside: dict[str, Any] = {"interpolation": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_CONSTANT}
        outside["borderValue"] = -1e6
        back_x, back_y = cv2.remap(there_x, x, y, **outside), cv2.remap(there_y, x, y, **outside)
        rows, columns = np.indices(x.shape, dtype=np.float32)
        steps.append((np.stack([x, y], axis=-1), np.hypot(back_x - columns, back_y - rows) < 1))
    return Truth(steps, [], [])


def _origins(estimate: Any, before: NDArray[np.uint8], now: NDArray[np.uint8]) -> tuple[Any, Any]:
    import cv2

    flow = estimate.calc(*(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in (now, before)), None)
    rows, columns = np.indices(flow.shape[:2], dtype=np.float32)
    return columns + flow[..., 0], rows + flow[..., 1]


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


def measure(
    segmenter: Segmenter, clips: Mapping[str, tuple[Frames, Truth]], say: Callable[[str], None]
) -> dict[str, Any]:
    """Every method on every clip: the means, and every clip's own figures."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    segmenter = copy(segmenter)
    segmenter.engine = engine = cast("Any", RememberingEngine(segmenter.engine))
    for clip, (frames, truth) in clips.items():
        say(clip)
        engine.forget()
        for name, labels in run_methods(segmenter, frames).items():
            rows.setdefault(name, {})[clip] = score(labels, truth)
    return {
        name: {
            key: round(float(np.mean([row[key] for row in found.values()])), 4) for key in next(iter(found.values()))
        }
        | {"clips": {clip: {key: round(value, 4) for key, value in row.items()} for clip, row in found.items()}}
        for name, found in rows.items()
    }


def missed(report: dict[str, Any]) -> list[str]:
    """What falls short of the budget, in words."""
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
        bool, typer.Option("--development", help="The scenes to choose settings on, not those to report.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
) -> None:
    """Do identities stay on their objects? On moving drawn scenes, and on real clips.

    Exit 1: a budget is missed.
    """
    from rich.console import Console

    from runtime.errors import DiffSegError
    from runtime.segmenter import Segmenter

    files = [] if clips is None else sorted(path for path in clips.rglob("*") if path.suffix.lower() in FORMATS)
    try:
        if clips is not None and not files:
            raise DiffSegError(f"{clips}: expected video files ({', '.join(FORMATS)}), found none")
        segmenter = Segmenter.open(engine)
    except DiffSegError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    split: Any = "development" if development else "test"
    report: dict[str, Any] = {"engine": str(engine or "embedded"), "frames": frames, "split": split}
    with Console(stderr=True).status("measuring") as status:
        drawn = {}
        for seed in range(scenes):
            scene = draw_moving_scene(seed, split=split)
            steps = [scene.origins(time, time - 1) for time in range(1, frames)]
            leaps = [scene.origins(time, time - LONG) for time in range(LONG, frames)]
            masks = [scene.mask(time) for time in range(frames)]
            drawn[f"scene {seed}"] = (list(scene.frames(frames)), Truth(steps, leaps, masks))
        report["scenes"] = measure(segmenter, drawn, status.update)
        del drawn
        if files:
            real = {}
            for path in files:
                status.update(f"{path.name}: flow")
                shown = read_clip(path, frames)
                if len(shown) < 2:
                    print(f"warning: {path}: no two frames could be read; left out", file=sys.stderr)
                    continue
                real[str(path.relative_to(clips or path))] = (shown, flow_truth(shown))
            if real:
                report["clips"] = measure(segmenter, real, status.update)
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

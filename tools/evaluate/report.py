"""The results of a run: a table for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.files import write_atomically
from tools.evaluate import metrics
from tools.evaluate.datasets import DataSet
from tools.evaluate.runner import Record
from tools.evaluate.variants import Variant

if TYPE_CHECKING:
    from rich.table import Table


PUBLISHED = " (published)"
TITLES = {
    "accuracy": "accuracy %",
    "miou": "mIoU %",
    "covering": "covering",
    "pri": "PRI",
    "voi": "VoI",
    "segments": "segments",
}


def summarise(
    data: DataSet, variants: Sequence[Variant], records: Sequence[Sequence[Record]], failed: int = 0
) -> dict[str, Any]:
    """Figures of every variant over the data set; without times and dates, so that every run gives the same.

    `failed`: the number of images that could not be evaluated and count in no figure.
    """
    results = []
    for variant, rows in zip(variants, records, strict=True):
        figures: dict[str, Any] = {"images": len(rows), "segments": _mean(rows, "segments")}
        if data.protocol.classes:
            figures |= metrics.class_figures([_counts(row) for row in rows])
            figures["iou"] = dict(zip(data.protocol.classes, figures["iou"], strict=True))
        figures |= {name: _mean(rows, name) for name in metrics.REGION_FIGURES}
        results.append({"settings": settings(variant), "figures": figures})
    return {
        "dataset": data.protocol.title,
        "images": len(data.samples) - failed,
        "failed": failed,
        "missing": data.missing,
        "results": results,
    }


def settings(variant: Variant) -> dict[str, Any]:
    """The settings that apply to a variant."""
    return {name: getattr(variant, name) for name in variant.__dataclass_fields__ if getattr(variant, name) is not None}


def _mean(rows: Sequence[Record], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _counts(row: Record) -> metrics.Counts:
    return metrics.Counts(*(np.array(row[name], np.int64) for name in ("tp", "fp", "fn")))


def image_figures(row: Record) -> dict[str, float]:
    """Figures of one image: those of its record; with classes also accuracy and mIoU over the classes in the truth."""
    figures = {}
    if "tp" in row:
        counts = _counts(row)
        present = counts.tp + counts.fn > 0
        iou = metrics.intersection_over_union(counts.tp, counts.fp, counts.fn)
        figures["accuracy"] = float(counts.tp.sum() / (counts.tp.sum() + counts.fn.sum()))
        figures["miou"] = float(iou[present].mean())
    return figures | {name: row[name] for name in metrics.REGION_FIGURES}


def describe(variant: Variant, variants: Sequence[Variant]) -> str:
    """Name of a variant in a table: its method, and the settings in which the variants differ."""
    parts = [variant.method]
    for name, value in settings(variant).items():
        others = {getattr(other, name) for other in variants if other.method == variant.method}
        if name != "method" and len(others) > 1:
            parts.append(text(value) if name == "engine" else f"{name.replace('_', ' ')} {text(value)}")
    return ", ".join(parts)


def text(value: Any) -> str:
    """A setting as people write it, such as 0.4 for the same threshold in every iteration."""
    if value is True:
        return "thresholds"
    if isinstance(value, tuple):
        shown = [f"{number:g}" for number in value]
        return shown[0] if len(set(shown)) == 1 and len(shown) > 1 else ",".join(shown)
    return str(value)


def cells(data: DataSet, variants: Sequence[Variant], summary: dict[str, Any]) -> list[list[str]]:
    """The table as text: headings, a row per variant, then published rows for comparison."""
    protocol = data.protocol
    columns = [*(("accuracy", "miou") if protocol.classes else ()), *metrics.REGION_FIGURES, "segments"]
    rows = [["method", *(TITLES[name] for name in columns)]]
    for variant, result in zip(variants, summary["results"], strict=True):
        rows.append([describe(variant, variants), *(show(name, result["figures"][name]) for name in columns)])
    for row in protocol.published:
        rows.append([f"{row['method']}{PUBLISHED}", *(f"{row[name]:.1f}" if name in row else "" for name in columns)])
    return rows


def table(rows: Sequence[Sequence[str]], title: str) -> Table:
    """The rows of `cells` as a table for a terminal."""
    from rich.table import Table

    shown = Table(title=title)
    for number, heading in enumerate(rows[0]):
        shown.add_column(heading, justify="right" if number else "left", no_wrap=number > 0)
    for row in rows[1:]:
        shown.add_row(*row, style="dim" if row[0].endswith(PUBLISHED) else None)
    return shown


def show(name: str, value: float) -> str:
    """A figure in the precision and unit that people read."""
    if name in ("accuracy", "miou"):
        return f"{100 * value:.1f}"
    return f"{value:.1f}" if name == "segments" else f"{value:.2f}" if name == "voi" else f"{value:.3f}"


def write(
    folder: Path,
    variants: Sequence[Variant],
    summary: dict[str, Any],
    records: Sequence[Sequence[Record]],
) -> None:
    """Write `results.json` and `images.csv`, one line per image and variant, into `folder`."""
    write_atomically(folder / "results.json", (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
    lines = io.StringIO()
    writer: Any = None
    for variant, rows in zip(variants, records, strict=True):
        for row in rows:
            entry = {"method": describe(variant, variants), "image": row["image"], **image_figures(row)}
            entry |= {"segments": row["segments"], "annotators": row["annotators"]}
            if writer is None:
                writer = csv.DictWriter(lines, list(entry), lineterminator="\n")
                writer.writeheader()
            writer.writerow(entry)
    write_atomically(folder / "images.csv", lines.getvalue().encode())

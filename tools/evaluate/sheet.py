"""A page of the best and worst images of every variant: picture, ground truth and segments side by side."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.files import write_atomically
from runtime.outputs.draw import borders
from runtime.outputs.palette import palette
from tools.evaluate import metrics, report
from tools.evaluate.datasets import Sample, resize_bilinear
from tools.evaluate.methods import Evaluator
from tools.evaluate.runner import Job, Record, in_processes
from tools.evaluate.variants import Variant

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH = 300  # pixels of each of the three pictures
UNLABELLED_GREY = 40
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1900px; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } .published { color: #777 }
.sheet { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 } figcaption { font-size: 13px }
img { display: block; max-width: 100% }
"""


def write_sheet(
    path: Path, job: Job, summary: dict[str, Any], records: Sequence[Sequence[Record]], count: int, jobs: int
) -> None:
    """Write a page with the `count` best and worst images per variant, by mIoU or, without classes, by covering.

    The file contains its pictures. Raises DiffSegError when a process dies.
    """
    chosen = [extremes(rows, count) for rows in records]
    numbers = {sample.name: number for number, sample in enumerate(job.data.samples)}
    wanted: dict[int, list[int]] = {}
    for index, pair in enumerate(chosen):
        for row in (*pair[0], *pair[1]):
            wanted.setdefault(numbers[row["image"]], []).append(index)
    pictures: dict[tuple[str, int], bytes] = {}
    for number, drawn in in_processes(job, draw, sorted(wanted.items()), jobs):
        if not isinstance(drawn, str):
            pictures |= {(job.data.samples[number].name, index): data for index, data in drawn.items()}
    title = f"{job.data.protocol.title}: {summary['images']} images"
    parts = [f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>"]
    parts.append(_table(report.cells(job.data, job.variants, summary)))
    parts.append("<p>In every row: the picture, the ground truth (dark: unlabelled; the first annotator's), the ")
    parts.append("segments in the colours of the regions they are matched with.</p>")
    for index, (variant, (best, worst)) in enumerate(zip(job.variants, chosen, strict=True)):
        parts.append(f"<h2>{html.escape(report.describe(variant, job.variants))}</h2>")
        parts.append(f"<p>{html.escape(_settings(variant))}</p>")
        for heading, rows in (("Worst", worst), ("Best", best)):
            shown = [_figure(row, pictures.get((row["image"], index))) for row in rows]
            parts.append(f'<h3>{heading}</h3><div class="sheet">{"".join(shown)}</div>')
    page = '<!doctype html><html lang="en"><meta charset="utf-8">' + "\n".join(parts) + "</html>\n"
    write_atomically(path, page.encode())


def extremes(rows: Sequence[Record], count: int) -> tuple[list[Record], list[Record]]:
    """The `count` best records, best first, and the worst, worst first; no record is in both lists."""

    def figure(row: Record) -> tuple[float, str]:
        figures = report.image_figures(row)
        return -figures.get("miou", figures["covering"]), row["image"]

    order = sorted(rows, key=figure)
    worst = order[::-1][: min(count, len(order) // 2)]
    return order[: min(count, len(order) - len(worst))], worst


def draw(job: Job, evaluator: Evaluator, sample: Sample, wanted: list[int]) -> dict[int, bytes]:
    """A JPEG file per wanted variant: picture, truth and segments side by side."""
    frame, truths = job.data.load(sample)
    truth = truths[0]
    shown = resize_bilinear(frame, *truth.shape)
    classes = len(job.data.protocol.classes) or None
    files = {}
    for index in wanted:
        labels = evaluator.labels(job.variants[index], job.data, frame, truths)
        colours = _matched(metrics.contingency(truth, labels, classes, classes or 0))
        panels = (shown, _paint(shown, truth), _paint(shown, labels, colours))
        height = max(1, round(truth.shape[0] * WIDTH / truth.shape[1]))
        small = [cv2.resize(panel, (WIDTH, height), interpolation=cv2.INTER_AREA) for panel in panels]
        files[index] = cv2.imencode(".jpg", np.hstack(small), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    return files


def _matched(table: NDArray[np.int64]) -> NDArray[np.intp]:
    """The region that each segment is matched with, one to one; segments left over get numbers beyond the regions."""
    from scipy.optimize import linear_sum_assignment

    numbers = len(table) + np.arange(table.shape[1])
    rows, columns = linear_sum_assignment(table, maximize=True)
    numbers[columns] = rows
    return numbers


def _paint(
    frame: NDArray[np.uint8], labels: NDArray[np.int32], numbers: NDArray[np.intp] | None = None
) -> NDArray[np.uint8]:
    """The frame under the colours of its labels, or of `numbers`[label], with white borders; unlabelled pixels dark."""
    index = np.maximum(labels, 0) if numbers is None else numbers[labels]
    painted = cv2.addWeighted(frame, 0.35, palette(int(index.max()) + 1)[index], 0.65, 0)
    painted[labels < 0] = UNLABELLED_GREY
    painted[borders(labels, 1 + min(labels.shape) // 300)] = 255
    return np.asarray(painted, np.uint8)


def _figure(row: Record, picture: bytes | None) -> str:
    figures = report.image_figures(row)
    text = ", ".join(f"{report.TITLES[name]} {report.show(name, value)}" for name, value in figures.items())
    name = html.escape(row["image"])
    image = (
        ""
        if picture is None
        else f'<img alt="{name}" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
    )
    return f"<figure>{image}<figcaption>{name}: {text}, {row['segments']} segments</figcaption></figure>"


def _settings(variant: Variant) -> str:
    return ", ".join(f"{name} {report.text(value)}" for name, value in report.settings(variant).items())


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        cells = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        lines.append(f"<tr{' class=published' * row[0].endswith(report.PUBLISHED)}>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"

"""Label pictures: a single channel, 0-based, 8 or 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.outputs.draw import label_image
from runtime.outputs.png import encode_png
from runtime.outputs.sinks import FrameFolder, PictureSink, Sink

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.outputs.form import ClipForm
    from runtime.outputs.target import Target


def picture(target: Target) -> Sink:
    """`<stem>_labels.png`."""
    return PictureSink(target.path("_labels.png"), lambda frame, labels, *, colours, names: label_image(labels))


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_labels/000000.png` and so on."""
    return LabelFolder(target.path("_labels"))


class LabelFolder(FrameFolder):
    """`<folder>/000000.png` and so on: one label picture per frame, named by the frame's number."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ".png", lambda frame, labels, colours, names: encode_png(label_image(labels)))

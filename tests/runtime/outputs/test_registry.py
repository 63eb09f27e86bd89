"""A kind of output is one entry and one module."""

import sys
from types import ModuleType

import cv2
import pytest
from typer.testing import CliRunner

from runtime.errors import DiffSegError
from runtime.outputs import registry
from runtime.outputs.registry import KINDS, OutputKind, parse_kinds
from runtime.outputs.sinks import Sink
from runtime.segment import app
from tests.runtime.clips import draw, write_clip


class CountSink(Sink):
    """Writes how many segments each frame has, one line each."""

    def __init__(self, path):
        self.path, self.lines = path, []

    def prepare(self, frame, labels, colours=None, names=None):
        return f"{labels.max() + 1}\n"

    def write(self, number, time, prepared):
        self.lines.append(prepared)
        return self.path

    def close(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(self.lines))


class CountFile(CountSink):
    """Of a photograph: written at once."""

    def write(self, number, time, prepared):
        super().write(number, time, prepared)
        self.close()
        return self.path


def test_a_new_kind_is_one_entry_and_one_module(tmp_path, monkeypatch, stand_in):
    module = ModuleType("counted")
    module.picture = lambda target: CountFile(target.path("_count.txt"))
    module.clip = lambda target, form, warn: CountSink(target.path("_count.txt"))
    monkeypatch.setitem(sys.modules, "counted", module)
    monkeypatch.setattr(registry, "KINDS", (*KINDS, OutputKind("count", "counted", "number of segments")))
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", draw(0))
    write_clip(tmp_path / "clip.mp4", 3)
    result = CliRunner().invoke(app, ["photo.png", "clip.mp4", "--save", "count", "--temporal", "off"])
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "segmented" / "photo_count.txt").read_text() == "2\n"
    assert (tmp_path / "segmented" / "clip_count.txt").read_text() == "2\n2\n2\n"


def test_kinds_on_the_command_line():
    assert parse_kinds("overlay, labels,overlay") == ["overlay", "labels"] and parse_kinds("none") == []
    known = "overlay, labels, segments, archive, npz, masks, cutouts, polygons, yolo, coco, panoptic, semantic"
    for text in ("", "overlay,sound", "none,labels"):
        with pytest.raises(DiffSegError, match=f"--save: expected some of {known}, or none"):
            parse_kinds(text)

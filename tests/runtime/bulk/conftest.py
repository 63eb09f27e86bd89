"""Drawn pictures in a folder, and the map function on an engine that takes no time."""

import cv2
import pytest

from runtime.segmenter import Segmenter
from tests.runtime.clips import StandIn, draw

pytest.importorskip("pyarrow")
pytest.importorskip("pycocotools")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Five drawn pictures, two of them in a folder below, and the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    for number in range(5):
        cv2.imwrite(str(folder / ("below" if number > 2 else "") / f"{number}.png"), draw(5 * number))
    return folder


@pytest.fixture
def segment():
    """Segments by brightness."""
    from runtime.bulk import SegmentBatch

    return SegmentBatch(Segmenter(StandIn()))

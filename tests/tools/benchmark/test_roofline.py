"""The edge page's figures are those that are counted."""

import pytest

from tests.conftest import ROOT
from tools.benchmark.native import CARDS
from tools.benchmark.roofline import CONFIGURATIONS, Configuration, Work, count_work, rows


def test_the_pages_table():
    page = (ROOT / "export" / "README.md").read_text()
    for cells in rows([CONFIGURATIONS[1], CONFIGURATIONS[-1]]):
        assert f"| {' | '.join(cells)} |" in page
    assert all(f"| {configuration.name} |" in page for configuration in CONFIGURATIONS)


@pytest.mark.slow
def test_counts_are_the_exported_graphs(small_pipeline, tmp_path):
    """What is counted on shapes alone is in the file: arithmetic within the attention's products, weights exactly."""
    from export.engine import ExportRequest, export_engine

    request = ExportRequest(model=str(small_pipeline), size=(128, 128), precision="fp16")
    after = export_engine(request, tmp_path / "x.onnx", check=False).after
    counted = count_work(Configuration("small", family="small", size=128))
    assert counted.flops == pytest.approx(after.flops, rel=0.05)
    assert counted.weights / 2 == pytest.approx(after.parameters, rel=0.05)
    assert counted.sides == (16, 8, 4, 2)


def test_the_slower_of_two_limits_counts():
    card = CARDS["A100"]
    merge = Work((), 0, (64, 32, 16, 8)).least_milliseconds(card)
    arithmetic = Work(((card.half, 1.0, True),), 0, (64, 32, 16, 8)).least_milliseconds(card)
    moved = Work(((1.0, card.bytes, True),), 0, (64, 32, 16, 8)).least_milliseconds(card)
    assert arithmetic - merge == pytest.approx(1000) and moved - merge == pytest.approx(1000)
    single = Work(((card.operations, 1.0, False),), 0, (64, 32, 16, 8)).least_milliseconds(card)
    assert single - merge == pytest.approx(1000)

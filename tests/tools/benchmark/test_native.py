"""The merge core's benchmark for a GPU: what it counts, finds and prints needs none."""

import pytest
from typer.testing import CliRunner

from runtime.errors import DiffSegError
from runtime.gpu import probe
from runtime.native import build, load
from tests.conftest import ROOT
from tools.benchmark import native
from tools.benchmark.__main__ import app as benchmark


@pytest.fixture
def no_gpu(monkeypatch):
    def absent():
        raise DiffSegError("device 'cuda' needs an NVIDIA GPU")

    probe.driver_architecture.cache_clear()
    monkeypatch.setattr(probe, "check_driver", absent)
    yield
    probe.driver_architecture.cache_clear()


def test_benchmark_without_a_gpu(no_gpu):
    result = CliRunner().invoke(benchmark, ["core", "--device", "cuda"])
    assert (result.exit_code, result.output) == (1, "error: device 'cuda' needs an NVIDIA GPU\n")
    result = CliRunner().invoke(benchmark, ["core", "--device", "tpu"])
    assert result.exit_code == 1
    assert result.output.startswith("error: device: expected 'cpu', 'cuda' or 'cuda:N', found 'tpu'")


def test_counts_at_64():
    """The figures of the embedding page."""
    counted = native.count([64, 32, 16, 8])
    assert round(counted["aggregate"][0] / 1e6) == 139
    assert round(counted["divergence"][1] / 1e9, 1) == round(counted["means"][1] / 1e9, 1) == 17.2
    least = {
        name: sum(native.least_milliseconds(stage, card) for stage in counted.values())
        for name, card in native.CARDS.items()
    }
    page = (ROOT / "runtime" / "native" / "README.md").read_text()
    for name, milliseconds in least.items():
        assert f"{milliseconds:.2f} ms" in next(line for line in page.splitlines() if f"| {name} |" in line)


def test_expected_times():
    """Those of the page, which follow from counts of instructions; never below what bytes and operations allow."""
    page = (ROOT / "runtime" / "native" / "README.md").read_text()
    for name, card in native.CARDS.items():
        times = [native.expected_milliseconds(card, side, kept) for side, kept in ((64, 64), (64, 256), (96, 64))]
        assert f"| {name} | {' | '.join(f'{time:.2f} ms' for time in times)} |" in page
        least = sum(native.least_milliseconds(stage, card) for stage in native.count([64, 32, 16, 8]).values())
        assert least < times[1] and times[0] <= times[1]
    assert native.expected_milliseconds(native.CARDS["H200"]) < 0.3


def test_cards_are_found_by_name():
    assert native.find_card("NVIDIA H200") is native.CARDS["H200"]
    assert native.find_card("NVIDIA A100-SXM4-80GB") is native.CARDS["A100"]
    assert native.find_card("NVIDIA L40S") is None


@pytest.mark.slow
def test_measure_and_table(monkeypatch, tmp_path, capsys):
    """The measuring itself, with the CPU build in the GPU's place."""
    library = load(path=build.build_cpu_library(tmp_path / build.NAME))
    report = native.measure(library, 16, 2)
    assert report["difference"] <= 0.001
    assert list(report["stages"]) == list(native.count([64]))
    native.print_native(report)
    assert "labels differ 0.0000%" in capsys.readouterr().out

"""Without a GPU the tools for one say so in a line; what they count and read needs none."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.engine.registry import EMBEDDED
from runtime.errors import DiffSegError
from runtime.gpu import probe
from tools.gpu_check import check as gpu_check
from tools.gpu_check import plans as gpu_plans
from tools.gpu_check.__main__ import app

ROOT = Path(__file__).parents[3]


def test_gpu_check_without_a_gpu():
    try:
        probe.check_driver()
    except DiffSegError:
        command = [sys.executable, "-m", "tools.gpu_check"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: device 'cuda' needs an NVIDIA GPU")
        assert len(done.stderr.splitlines()) == 1
        assert "; run this where there is one" in done.stderr and "cpu" not in done.stderr
    else:
        pytest.skip("there is a GPU")


def test_gpu_check_needs_a_place_for_its_report(tmp_path):
    """Before the minutes of work that it would tell of."""
    for path, wrong in ((tmp_path, "is a folder"), (tmp_path / "no" / "report.json", "is in no folder that exists")):
        result = CliRunner().invoke(app, ["--output", str(path)])
        assert result.exit_code == 2 and f"found {path}, which {wrong}" in result.stderr


def test_results_are_read(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="a" name="x"/>'
        '<testcase classname="a" name="y"><skipped message="no tool"/></testcase>'
        '<testcase classname="a" name="z"><failure message="wrong"/></testcase></testsuite></testsuites>'
    )
    assert gpu_check.read_results(path) == {
        "passed": 1,
        "failed": 1,
        "skipped": 1,
        "reasons": {"a::y": "no tool", "a::z": "wrong"},
    }


def test_engines_are_compared_stage_by_stage():
    """The measuring itself, with the CPU in the GPU's place: an engine agrees with itself."""
    found = gpu_plans.compare(EMBEDDED, "cpu", 1)
    assert found["row_kl"] < 1e-9 and found["labels_differ"] == 0 and found["missed"] == []
    assert set(found["milliseconds"]) == {"resize", "network", "merge", "labels", "total"}
    assert 0 < found["merge_share"] < 1


def test_a_measurement_that_fails_takes_no_other_along(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu_check, "measure_apart", lambda name, *_: {"error": f"{name} died"})
    engines = gpu_check.measure_engines(0, 1, full=True)
    assert engines["tensorrt"] == {"skipped": "tensorrt is not installed"}
    assert [gpu_check.problems(found) for found in engines.values()] == [["tiny_onnxruntime died"], [], []]
    assert gpu_check.problems({"missed": ["row KL"], "row_kl": 1.0}) == ["row KL"]


def test_measured_in_a_process_of_its_own():
    assert gpu_check.measure_apart("nothing_of_this_name")["error"].startswith("exit 1: AttributeError")


def test_programs_take_turns():
    calls = []
    times = gpu_plans.take_turns(lambda: calls.append("a"), lambda: calls.append("b"), 2, warm=1)
    assert calls == ["a", "b"] * 3 and [len(found) for found in times] == [2, 2]

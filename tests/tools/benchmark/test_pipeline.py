"""The benchmark of the stages measures what it says, on photographs and a clip that it draws."""

import json

import pytest
from typer.testing import CliRunner

from tools.benchmark.__main__ import app


@pytest.mark.proof
def test_all_parts():
    result = CliRunner().invoke(app, ["pipeline", "--count", "10", "--frames", "10", "--every", "5", "--json"])
    report = json.loads(result.stdout)
    assert {found["backend"] for found in report["photographs"]} == {"onnxruntime", "openvino"}
    for found in report["photographs"]:
        assert 0 < found["outside_network_ms"] < found["processor_ms"]
    # No photograph is faster than the stand-in sleeps; whether it is slower by too much, the exit status says.
    assert report["stand_in"]["ms"] >= 5 and report["stand_in"]["ratio"] >= 0.9
    assert report["memory"]["photographs"] == [10, 100]
    assert report["clip"][0]["frames"] == 10
    assert set(report["clip"][0]["busy"]) == {
        *("decode", "resize", "network", "merge", "labels", "track", "draw", "encode")
    }
    assert result.exit_code == bool(report["missed"])


@pytest.mark.slow
def test_one_part():
    result = CliRunner().invoke(app, ["pipeline", "--part", "stand-in", "--count", "10", "--json"])
    report = json.loads(result.stdout)
    assert report["stand_in"]["frames"] == 10 and report["stand_in"]["ms"] >= 5
    assert "photographs" not in report and "clip" not in report
    assert result.exit_code == bool(report["missed"])

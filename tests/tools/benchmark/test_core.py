"""The benchmark runs and finds both programs in agreement; its times are nobody's business here."""

import json

from typer.testing import CliRunner

from tools.benchmark.__main__ import app


def test_core_at_a_small_side():
    result = CliRunner().invoke(app, ["core", "--side", "24", "--repeat", "1", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["difference"] <= 0.001
    assert report["missed"] == []
    assert set(report["seconds"]) == {"ours", "elementwise"}
    assert report["memory_mb"] is None or 0 <= report["memory_mb"] < 300


def test_table():
    result = CliRunner().invoke(app, ["core", "--side", "16", "--repeat", "1"])
    assert result.exit_code == 0, result.output
    assert "labels differ 0.0000%" in result.output

"""The benchmark of video's stages measures what it says, on a clip that it draws."""

import json

from typer.testing import CliRunner

from tools.benchmark.__main__ import app


def test_pipeline():
    result = CliRunner().invoke(app, ["pipeline", "--frames", "10", "--every", "5", "--json"])
    report = json.loads(result.stdout)
    overlap, whole = report["overlap"], report["whole"]
    assert overlap["frames"] == whole["frames"] == 10 and whole["per_second"] > 0
    assert abs(overlap["engine_ms"] - 2 * overlap["others_ms"]) < 0.1
    # No clip is faster than its engine sleeps; whether it is slower by too much, the exit status says.
    assert overlap["ratio"] >= 1 and result.exit_code == (overlap["ratio"] > 1.15)
    assert set(overlap["busy"]) == {"decode", "resize", "network", "merge", "track", "draw", "encode"}

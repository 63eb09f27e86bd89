"""Runs the evaluation as its command line does."""

import json

from typer.testing import CliRunner

from tools.evaluate.__main__ import app


def run(tmp_path, *arguments, jobs=1, pictures=0):
    """Exit status 0 and the JSON, or the status and the message."""
    output = tmp_path / "out"
    options = ["--output", str(output), "--jobs", str(jobs), "--pictures", str(pictures), "--json"]
    result = CliRunner().invoke(app, [str(word) for word in arguments] + options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return (0, json.loads(result.stdout)) if result.exit_code == 0 else (result.exit_code, result.stderr)


def figures(tmp_path, *arguments, **options):
    status, summary = run(tmp_path, *arguments, **options)
    assert status == 0, summary
    return [row["figures"] for row in summary["results"]]

"""What the tests of building plans share."""

import importlib.util
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from export.__main__ import app
from runtime.engine.registry import EMBEDDED
from runtime.engine.spec import sidecar_path

ROOT = Path(__file__).parents[3]
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refuses(result, *words):
    assert result.exit_code in (1, 2), result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and all(word in lines[0] for word in words), lines


def copy_tiny(folder):
    for file in (EMBEDDED, sidecar_path(EMBEDDED)):
        shutil.copy(file, folder / file.name)
    return folder / EMBEDDED.name

import pytest
from typer.testing import CliRunner

from runtime.engine.registry import EMBEDDED
from tools.evaluate.__main__ import app


@pytest.mark.slow
def test_command_line(tmp_path):
    import cv2
    from skimage import data

    cv2.imwrite(str(tmp_path / "coffee.png"), data.coffee()[..., ::-1])
    run = lambda *more: CliRunner().invoke(app, ["agreement", str(EMBEDDED), str(EMBEDDED), str(tmp_path), *more])  # noqa: E731
    result = run("--threshold", "0.05")
    assert result.exit_code == 0 and result.stdout.startswith("100.00% of pixels agree"), result.output
    result = run("--threshold", "1e9")
    assert result.exit_code == 1 and "with 4 segments of at least 1%, found none in 1" in result.stderr

"""The example of interactive use: pictures of what was clicked, and one line for what is wrong."""

import cv2
import pytest
from typer.testing import CliRunner

from tests.runtime.clips import draw
from tools.attend import app


@pytest.mark.slow
def test_it_draws_what_was_clicked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", draw(3))
    result = CliRunner().invoke(app, ["photo.png", "--at", "20,20", "--at", "60,40"])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "attended").iterdir()) == ["photo_20_20.png", "photo_60_40.png"]
    assert cv2.imread("attended/photo_20_20.png").shape == (48, 128, 3)
    assert "milliseconds at 1024 tokens: labels" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--at", "64,0"], 1, "expected a pixel of the frame, x from 0 to 63 and y from 0 to 47, found 64, 0"),
        (["--at", "middle"], 2, "--at: expected a pixel x,y such as 120,80, found 'middle'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, words, status, text):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", draw(3))
    result = CliRunner().invoke(app, ["photo.png", *words])
    assert result.exit_code == status and text in result.stderr and result.stderr.count("\n") == 1

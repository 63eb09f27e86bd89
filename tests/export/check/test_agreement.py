import numpy as np
import pytest
from typer.testing import CliRunner

from export.check.agreement import matched_agreement, says_something
from runtime.engine.registry import EMBEDDED
from tools.evaluate.__main__ import app

QUARTERS = np.kron(np.array([[0, 1], [2, 3]]), np.ones((10, 10), int))


def test_numbers_do_not_matter_but_segments_do():
    assert matched_agreement(3 - QUARTERS, QUARTERS) == 1
    assert matched_agreement(np.zeros_like(QUARTERS), QUARTERS) == 0.25
    halves = QUARTERS // 2
    assert matched_agreement(halves, QUARTERS) == 0.5
    with pytest.raises(ValueError, match="one shape"):
        matched_agreement(halves[:5], QUARTERS)


def test_the_assignment_is_optimal_where_the_largest_overlap_first_is_not():
    # Overlaps [[6, 5], [5, 0]]: the largest first gives 6 + 0, the best 5 + 5.
    found = np.array([0] * 11 + [1] * 5)[None]
    expected = np.array([0] * 6 + [1] * 5 + [0] * 5)[None]
    assert matched_agreement(found, expected) == 10 / 16


def test_images_without_segments_say_nothing():
    assert says_something(QUARTERS) and not says_something(QUARTERS // 2)


def test_command_line(tmp_path):
    import cv2
    from skimage import data

    cv2.imwrite(str(tmp_path / "coffee.png"), data.coffee()[..., ::-1])
    run = lambda *more: CliRunner().invoke(app, ["agreement", str(EMBEDDED), str(EMBEDDED), str(tmp_path), *more])  # noqa: E731
    result = run("--threshold", "0.05")
    assert result.exit_code == 0 and result.stdout.startswith("100.00% of pixels agree"), result.output
    result = run("--threshold", "1e9")
    assert result.exit_code == 1 and "none of 1 photographs has 4 segments" in result.stderr

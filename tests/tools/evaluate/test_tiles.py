"""What the comparison of runs with and without tiles counts."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tools.evaluate.__main__ import app
from tools.evaluate.tiles import border_shares, found_share
from tools.scenes.large import draw_large_scene


def test_small_things_are_found_by_segments_that_are_not_much_larger():
    mask = np.zeros((100, 100), int)
    for number, y in enumerate((10, 40, 70), 1):
        mask[y : y + 10, 10:20] = number
    labels = np.zeros_like(mask)
    labels[8:22, 8:22] = 1  # around the first
    labels[40:44, 10:20] = 2  # less than half of the second
    labels[60:90, 10:40] = 3  # nine times the third
    assert found_share(mask, labels, [1, 2, 3]) == pytest.approx(1 / 3)
    assert found_share(mask, mask, [1, 2, 3]) == 1


def test_borders_on_seams_and_elsewhere():
    labels = np.zeros((40, 60), int)
    labels[:, 30:] = 1
    on, elsewhere = border_shares(labels, ([20], [30]))
    assert on == pytest.approx(1 / 8) and elsewhere == 0
    on, elsewhere = border_shares(labels, ([20], [10]))
    assert on == 0 and elsewhere == pytest.approx(1 / (39 + 59 - 8))


def test_large_scenes_have_small_things_inside_their_areas():
    scene, small = draw_large_scene(3, (400, 500), small=5)
    again, _ = draw_large_scene(3, (400, 500), small=5)
    assert np.array_equal(scene.frame, again.frame) and scene.frame.shape == (400, 500, 3)
    assert 1 <= len(small) <= 5 and set(small) <= set(np.unique(scene.mask).tolist())
    for value in small:
        rows, columns = np.nonzero(scene.mask == value)
        assert 30 < len(rows) < 4 * 26**2
        around = scene.mask[rows.min() - 3 : rows.max() + 4, columns.min() - 3 : columns.max() + 4]
        assert len(np.unique(around)) == 2


@pytest.mark.slow
def test_tiles_are_better_than_one_pass_and_their_seams_are_not_seen():
    result = CliRunner().invoke(app, ["tiles", "--count", "3", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["tiles"]["covering"] > found["whole"]["covering"] + 0.05
    assert found["tiles"]["found"] > found["whole"]["found"] + 0.6
    assert found["tiles"]["borders_on_seams"] <= found["tiles"]["borders_elsewhere"]

"""Settings are tried on pictures whose best one is known."""

import json
from inspect import signature

import numpy as np
from typer.testing import CliRunner

from tests.tools.evaluate import drawn
from tools.evaluate import tune
from tools.evaluate.__main__ import app
from tools.evaluate.classical import METHODS


def test_the_best_setting_comes_first(monkeypatch):
    """Two colours that only a threshold below their distance keeps apart, and noise that a high one ignores."""
    frame = np.full((60, 60, 3), 60, np.uint8)
    frame[:, 30:] = (60, 130, 160)
    frame = (frame + np.random.default_rng(0).integers(0, 12, frame.shape)).astype(np.uint8)
    truth = (np.arange(60) >= 30).astype(np.int32)[None].repeat(60, 0)
    grid = {"pieces": (36,), "compactness": (10,), "threshold": (1, 20, 90)}
    monkeypatch.setattr(tune, "GRIDS", {"slic-merged": grid})
    assert [setting["threshold"] for setting in tune.settings("slic-merged")] == [1, 20, 90]
    scores = tune.sweep("slic-merged", (frame, [truth, truth]))
    assert scores[1] > 0.95 and scores[2] == 0.5 and scores[0] < 0.9


def test_the_command_sorts_settings_and_names_what_is_wrong(monkeypatch):
    monkeypatch.setattr(tune, "GRIDS", {"felzenszwalb": {"scale": (50, 800), "min_size": (20,)}})
    result = CliRunner().invoke(app, ["tune", "--scenes", "1", "--json"])
    rows = json.loads(result.stdout)["felzenszwalb"]
    assert [row["settings"]["scale"] for row in rows] in ([50, 800], [800, 50])
    assert rows[0]["covering"] == rows[0]["scenes"] >= rows[1]["covering"]
    assert "felzenszwalb" in CliRunner().invoke(app, ["tune", "--scenes", "1"]).stdout
    for wrong in (["--scenes", "0"], ["--method", "snakes"]):
        result = CliRunner().invoke(app, ["tune", *wrong])
        assert result.exit_code == 1 and result.stderr.startswith("error:") and "expected" in result.stderr


def test_pictures_are_those_that_chose_our_settings(tmp_path, monkeypatch):
    """The lists that ship, in folders that hold more than they name, as the downloads do."""
    monkeypatch.setattr(tune, "LISTS", tmp_path)
    for name, chosen in (("bsds500-development", "1"), ("camvid", "scene1\nscene2\nscene3")):
        (tmp_path / f"{name}.txt").write_text(chosen, encoding="utf-8")
    bsds = drawn.bsds(tmp_path / "bsds", folder="data")
    for kind in ("images", "groundTruth"):
        (bsds / "data" / kind / "test").rename(bsds / "data" / kind / "train")
    camvid = drawn.indexed(tmp_path / "camvid", "val", "valannot", (0, 3, 11), count=4)
    found = tune._pictures(bsds, camvid, 0)
    assert {name: len(pictures) for name, pictures in found.items()} == {"BSDS500": 1, "CamVid": 2}


def test_the_lists_are_those_of_the_tables():
    lengths = {"bsds500-development": 40, "bsds500-reported": 100, "camvid": 21}
    names = {name: set((tune.LISTS / f"{name}.txt").read_text(encoding="utf-8").split()) for name in lengths}
    assert {name: len(each) for name, each in names.items()} == lengths
    assert not names["bsds500-development"] & names["bsds500-reported"]


def test_the_grids_are_arguments_of_their_methods():
    for method in tune.GRIDS:
        assert set(tune.GRIDS[method]) <= set(signature(METHODS[method]).parameters), method
        assert METHODS[method]

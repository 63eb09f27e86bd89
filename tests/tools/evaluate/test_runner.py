"""A run gives the same figures in any number of processes, and continues where an earlier one stopped."""

import pytest

from tests.tools.evaluate import drawn
from tests.tools.evaluate.running import figures
from tools.evaluate import runner


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A command line on a small data set."""
    monkeypatch.setattr(runner, "code_digest", lambda: b"")  # somebody may edit the code while tests run
    return ("bsds", drawn.bsds(tmp_path / "bsds"), "--method", "diffseg", "--method", "kmeans-lab")


@pytest.mark.slow
def test_figures_are_the_same_in_any_number_of_processes(tmp_path, words):
    first = figures(tmp_path, *words, pictures=1)
    files = ("results.json", "images.csv", "index.html")
    written = [(tmp_path / "out" / name).read_bytes() for name in files]
    again = tmp_path / "parallel"
    assert figures(again, *words, jobs=2, pictures=1) == first
    assert [(again / "out" / name).read_bytes() for name in files] == written


@pytest.mark.slow
def test_runs_continue_with_what_is_known(tmp_path, words, monkeypatch):
    """Only images, masks and variants that are new or have changed are measured."""
    root = words[1]
    first = figures(tmp_path, *words)
    measured = []
    real = runner.measure
    monkeypatch.setattr(
        runner,
        "measure",
        lambda job, evaluator, sample, wanted: (
            measured.append((sample.name, wanted)) or real(job, evaluator, sample, wanted)
        ),
    )
    assert figures(tmp_path, *words) == first and not measured
    # A line torn by a crash, and a mask that has changed since.
    store = next((tmp_path / "out/runs").glob("diffseg-*"))
    store.write_bytes(store.read_bytes()[:-20])
    assert figures(tmp_path, *words) == first and len(measured) == 1 and measured[0][1] == [0]
    measured.clear()
    mask = drawn.scene(20)[1]
    drawn.save_annotators(root / "BSDS500/data/groundTruth/test/0.mat", [mask > 1, mask > 2, mask])
    assert figures(tmp_path, *words) != first and measured == [("0", [0, 1])]
    measured.clear()
    more = drawn.bsds(tmp_path / "more", count=1)
    figures(tmp_path, "bsds", more, *words[2:])
    assert measured == [("0", [0, 1])]  # of the same name, elsewhere
    figures(tmp_path, *words)
    measured.clear()
    figures(tmp_path, *words, "--threshold", "0.3")
    assert [wanted for _, wanted in measured] == [[0]] * 3  # the other method is known

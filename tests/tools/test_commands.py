"""The command lines of the tools: their help needs the runtime's own packages only, and errors are one line."""

import json
import subprocess
import sys

import pytest
import typer.main
from typer.testing import CliRunner

from tests.conftest import ROOT
from tools.benchmark.__main__ import app as benchmark
from tools.evaluate.__main__ import app as evaluate
from tools.gpu_check.__main__ import app as gpu_check
from tools.sanitize.__main__ import app as sanitize
from tools.tiny.__main__ import app as tiny

# Starts every command line without any package but those that `pip install .` brings.
HELP = """
import importlib, json, re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from typer.testing import CliRunner

allowed, asked = {"diffseg"}, ["numpy", "opencv-python", "threadpoolctl", "typer", "rich"]
while asked:
    name = re.match(r"[\\w.-]+", asked.pop())[0].lower().replace("_", "-")
    if name not in allowed:
        allowed.add(name)
        try:
            asked += [need for need in requires(name) or () if "extra ==" not in need]
        except PackageNotFoundError:  # needed on another system only
            pass
hidden = {
    module for module, owners in packages_distributions().items()
    if not allowed & {owner.lower().replace("_", "-") for owner in owners}
}

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
found = {}
for words in json.loads(sys.argv[1]):
    app = importlib.import_module(f"{words[0]}.__main__").app
    result = CliRunner().invoke(app, [*words[1:], "--help"])
    found[" ".join(words)] = [result.exit_code, "Usage" in result.stdout, repr(result.exception)]
print(json.dumps({"found": found, "hidden": sorted(hidden)}))
"""


@pytest.mark.slow
def test_help_needs_no_extra():
    groups = {"tools.benchmark": benchmark, "tools.evaluate": evaluate, "tools.tiny": tiny}
    calls = [["tools.gpu_check"], ["tools.sanitize"], *([name] for name in groups)]
    calls += [[name, command] for name, app in groups.items() for command in typer.main.get_command(app).commands]
    assert len(calls) > 20
    done = subprocess.run([sys.executable, "-c", HELP, json.dumps(calls)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert {"torch", "onnxruntime", "scipy", "skimage", "PIL"} <= set(report["hidden"])
    assert report["found"] == {" ".join(call): [0, True, "None"] for call in calls}


@pytest.mark.parametrize(
    ("app", "words", "status", "text"),
    [
        (benchmark, ["core", "--side", "60"], 2, "--side: expected a multiple of 8, for four resolutions; found 60"),
        (benchmark, ["frame", "--family", "sd9"], 2, "--family: expected one of small, small-sd2"),
        (
            benchmark,
            ["frame", "--plot", "none/x.png"],
            2,
            "--plot: expected a .png in a folder that exists, found none/x",
        ),
        (
            benchmark,
            ["scaling", "--grids", "1"],
            2,
            "--grids: expected whole numbers with commas, at least 2,",
        ),
        (benchmark, ["scaling", "--peer", "eager"], 2, "--peer: expected one of onnxruntime, "),
        (benchmark, ["video", "--engine", "none.onnx"], 1, "none.onnx"),
        (benchmark, ["video", "--clips", "tools/scenes"], 1, "tools/scenes: expected video files (.mp4, "),
        (
            evaluate,
            ["folder", "none"],
            1,
            "was unpacked into, found no folder none",
        ),
        (evaluate, ["scenes", "--engine", "none.onnx"], 1, "none.onnx"),
        (
            tiny,
            ["train", "--photos", "none", "--output", "x"],
            1,
            "--photos: expected a folder with .jpg or .png",
        ),
        (tiny, ["train", "--photos", ".", "--output", "x", "--size", "huge"], 2, "--size: expected one of tiny, test"),
        (tiny, ["tune", "none", "--photos", ".", "--output", "x"], 2, "none: expected a diffusers folder"),
        (sanitize, ["--only", "fuzz memory"], 2, "--only: expected words of fuzz, address, plain; "),
        (gpu_check, ["--output", "none/report.json"], 2, "--output: expected a file to write, found none/report.json"),
    ],
)
def test_bad_input_is_one_line(app, words, status, text, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == status, (result.output, result.exception)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and text in result.stderr
    assert not result.stdout

"""The house rules: style and types, a README that tells the truth, nothing where it does not belong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=["lint", "format", "types"]
)
def test_style(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_the_readmes_test_command():
    command = 'pip install -e ".[dev]" && python -m pytest'
    assert command in README
    assert 'pip install -q -e ".[dev]" && python -m pytest' in (ROOT / ".ci" / "run").read_text()


def test_pictures_and_pages_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_options_the_readme_names_exist():
    """Every --option in a command of the README is one that its program knows."""
    texts = {}
    for line in re.findall(r"python -m (?:runtime|export|tools)[^\n`]*", README.replace("\\\n", " ")):
        words = line.split("#")[0].split()
        program = words[2]
        commands = {"export": ("check", "list", "plan", "quantize"), "tools.benchmark": None, "tools.evaluate": None}
        known = commands.get(program, ())
        sub = [words[3]] if len(words) > 3 and (known is None or words[3] in known) else []
        key = (program, *sub)
        if key not in texts:
            done = subprocess.run(
                [sys.executable, "-m", *key, "--help"], cwd=ROOT, capture_output=True, text=True, env=None
            )
            assert done.returncode == 0, (key, done.stderr)
            texts[key] = done.stdout
        for option in re.findall(r"(?<= )--[a-z-]+", line):
            assert option in texts[key], (line, option)
    assert ("runtime.segment",) in texts and ("export",) in texts


def test_runtime_never_imports_the_export_stage():
    forbidden = re.compile(r"^\s*(import|from) (torch|diffusers|transformers|onnx|export|tools)\b", re.MULTILINE)
    for path in (ROOT / "runtime").rglob("*.py"):
        assert not forbidden.search(path.read_text()), path

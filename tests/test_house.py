"""The house rules: style and types, a README that tells the truth, nothing where it does not belong."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = subprocess.run(["git", "ls-files", "*README.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
READMES = {name: (ROOT / name).read_text() for name in FILES.split()}
README = READMES["README.md"]
PROGRAMS = ("runtime.segment", "export")  # their options may be named on any page


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "."], id="lint"),
        pytest.param(["ruff", "format", "--check", "."], id="format"),
        pytest.param(["mypy"], id="types", marks=pytest.mark.slow),
    ],
)
def test_style(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_the_readmes_test_command():
    command = 'pip install -e ".[dev]" && python -m pytest'
    assert command in README
    assert 'pip install -q -e ".[dev]" && python -m pytest' in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("readme", READMES)
def test_pictures_and_pages_that_a_readme_links_to_exist(readme):
    headings = re.findall(r"^#+ (.*)", READMES[readme], re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", READMES[readme]):
        if not target:
            assert anchor in anchors, f"{readme}: no heading for #{anchor}"
        elif not target.startswith("http"):
            assert (ROOT / readme).parent.joinpath(target).exists(), f"{readme}: {target}"


# Prints the help of each command. One process for all: to import NumPy and typer anew for each would take longest.
HELP = """
import contextlib, io, json, runpy, sys
found = []
for module, *command in json.loads(sys.argv[1]):
    printed, sys.argv = io.StringIO(), [module, *command, "--help"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as end:
            status = end.code or 0
    found.append([status, printed.getvalue()])
print(json.dumps(found))
"""


@cache
def helps():
    """(module, command or none) of every call in a README → what it prints for --help."""
    calls = {(module, *named) for text in READMES.values() for module, named, _ in commands_in(text)}
    calls = sorted(calls | {(module,) for module in PROGRAMS})
    environment = os.environ | {"COLUMNS": "200"}
    words = [sys.executable, "-c", HELP, json.dumps(calls)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(zip(calls, json.loads(done.stdout), strict=True))


def help_of(module, *command):
    """What a program, or one of its commands, prints for --help."""
    status, printed = helps()[(module, *command)]
    assert status == 0, (module, command, printed)
    usage = next((line for line in printed.splitlines() if "usage:" in line.lower()), "")
    assert all(f" {word} " in f"{usage} " for word in command), f"python -m {module} has no command {command}: {usage}"
    return printed


def commands_in(text):
    """(module, command or none, the whole text) of every call of this project's programs: in code, prose and tables."""
    joined = text.replace("\\\n", " ")
    module = r"python -m ((?:runtime|export|tools)(?:\.\w+)*)"
    for call in re.finditer(rf"(?:{module}|(?<=\n    )diffseg(?= )|(?<=`)diffseg(?= ))([^\n`]*)", joined):
        words = call[2].split("#")[0].split()
        named = words[:1] if words and re.fullmatch(r"[a-z][a-z0-9-]+", words[0]) else []
        named = words[:2] if named == ["engine"] and not call[1] else named  # which has commands of its own
        yield call[1] or "runtime.cli", named, call[0].split("#")[0]


@pytest.mark.slow
@pytest.mark.parametrize("readme", READMES)
def test_commands_and_options_that_a_readme_names_exist(readme):
    """Options in a command are that command's; those in prose and tables are of a command of the page or a program."""
    known = "".join(map(help_of, PROGRAMS))
    for module, named, call in commands_in(READMES[readme]):
        found = help_of(module, *named)
        for option in re.findall(r"(?<=[ \[])--[a-z][a-z0-9-]*", call):
            assert re.search(rf"{option}\b(?!-)", found), f"{readme}: {option} in '{call}'"
        known += found
    for span in re.findall(r"`(--[a-z][^`]*)`", READMES[readme]):
        for option in re.findall(r"--[a-z][a-z0-9-]*", span):
            assert re.search(rf"{option}\b(?!-)", known), f"{readme}: no command of the page has {option}"


def test_readmes_name_what_people_start():
    called = {module for text in READMES.values() for module, _, _ in commands_in(text)}
    assert {"runtime.segment", "export", "tools.benchmark", "tools.evaluate"} <= called


@pytest.mark.parametrize("readme", READMES)
def test_extras_that_a_readme_names_exist(readme):
    extras = set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for names in re.findall(r"(?:\"\.|diffseg)\[([a-z,]+)\]", READMES[readme]):
        assert set(names.split(",")) <= extras, f"{readme}: {names}"


def test_runtime_never_imports_the_export_stage():
    forbidden = re.compile(r"^\s*(import|from) (torch|diffusers|transformers|onnx|export|tools)\b", re.MULTILINE)
    for path in (ROOT / "runtime").rglob("*.py"):
        assert not forbidden.search(path.read_text()), path

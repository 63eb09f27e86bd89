"""What `python -m tools.sanitize` builds and runs, and how it reads what came of it. It itself takes minutes."""

import pytest
from typer.testing import CliRunner

from runtime.native import build
from tools.sanitize import plan
from tools.sanitize.__main__ import app
from tools.sanitize.plan import FINDING, HARNESS, PARTS, chosen
from tools.sanitize.running import read_log


@pytest.fixture
def compilers(monkeypatch):
    monkeypatch.setattr(plan.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(plan, "_output", lambda command: f"/lib/{command[1].partition('=')[2]}")


def test_every_build_runs_the_tests_and_the_fuzzer(compilers, tmp_path):
    """With real threads in all of them, with both bodies; the fuzzer with clang."""
    assert len({part.name for part in PARTS}) == len(PARTS) == 8
    for part in PARTS:
        commands = part.build_commands(tmp_path / "built")
        words = [word for command in commands for word in command]
        assert "-DDIFFSEG_CPU_THREADS" in words and str(build.SOURCE) in words
        assert ("-DDIFFSEG_CPU_TENSOR" in words) == (part.body == "tensor")
        kinds = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}
        assert all(kinds[part.sanitizer.name] in command for command in commands)
        # The system's barriers hide races.
        assert ("-DDIFFSEG_CPU_BARRIERS" in words) == (part.sanitizer.name == "address")
        environment, run = part.environment(tmp_path / "built"), part.run_command(tmp_path / "built", tmp_path, 90)
        if part.kind == "fuzz":
            assert {command[0] for command in commands} == {"/bin/clang++"} and str(HARNESS) in words
            assert "-max_total_time=90" in run and "LD_PRELOAD" not in environment
        else:
            runtime = {"address": "/lib/libasan.so", "thread": "/lib/libtsan.so"}[part.sanitizer.name]
            assert environment["LD_PRELOAD"] == runtime and environment[plan.LIBRARY] == str(tmp_path / "built")
            assert set(plan.TESTS) <= set(run)
    assert all((plan.ROOT / path).is_file() for path in plan.TESTS)


def test_parts_by_their_words():
    assert chosen([]) == list(PARTS)
    assert [part.name for part in chosen(["thread fuzz", "plain tests address"])] == [
        *("fuzz, thread, plain", "fuzz, thread, tensor", "tests, address, plain")
    ]
    assert chosen(["memory"]) == []


def test_a_compiler_that_is_missing_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(plan.shutil, "which", lambda name: None)
    result = CliRunner().invoke(app, ["--only", "fuzz", "--output", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.endswith("error: clang++ is not on PATH; the sanitizers need it: apt-get install clang\n")


@pytest.mark.parametrize(
    ("status", "text", "expected", "why"),
    [
        (0, "#9\tDONE   cov: 7 ft: 9\nstat::number_of_executed_units: 12\n", "clean", None),
        (FINDING, "==1==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x1\n", "found", "==1==ERROR: Addr"),
        (FINDING, "WARNING: ThreadSanitizer: data race (pid=7)\n", "found", "WARNING: ThreadSanitizer: data race"),
        (FINDING, "a.cuh:1:2: runtime error: misaligned address\n", "found", "a.cuh:1:2: runtime error"),
        (FINDING, "wrong: segments >= 0, line 3\n", "found", "wrong: segments >= 0, line 3"),
        (0, "a.cuh:1:2: runtime error: that did not end it\n", "found", "a.cuh:1:2"),
        (FINDING, "", "found", "a finding"),
        (1, "#3\tINITED cov: 2\nno space\n", "failed", "exit 1: no space"),
        (-9, "", "failed", "exit -9: no output"),
    ],
)
def test_what_came_of_a_part(status, text, expected, why):
    fuzz = read_log(PARTS[0], status, text, 1.5)
    assert fuzz.status == expected and (fuzz.why is None if why is None else fuzz.why.startswith(why))
    if expected == "clean":
        assert (fuzz.inputs, fuzz.covered) == (12, 7)


def test_passed_tests_are_counted():
    part = chosen(["tests address plain"])[0]
    found = read_log(part, 0, "..........\n.... [ 66%]\n.ss. [100%]\n", 1.0)
    assert (found.status, found.inputs, found.covered) == ("clean", 16, None)

"""The check of a GPU loses no figure, whatever happens; without a GPU stand-ins walk through it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.engine.registry import EMBEDDED
from runtime.errors import DiffSegError
from runtime.gpu import probe
from tools.gpu_check import check as gpu_check
from tools.gpu_check import kernels, plain, suites
from tools.gpu_check import plans as gpu_plans
from tools.gpu_check.__main__ import app
from tools.gpu_check.apart import measure
from tools.gpu_check.bench import Bench
from tools.gpu_check.parts import PARTS, Part

ROOT = Path(__file__).parents[3]
DRY = Bench(repeat=1, dry=True)
FAULTS = "tests.tools.gpu_check.faults"


def test_gpu_check_without_a_gpu():
    try:
        probe.check_driver()
    except DiffSegError:
        for module in ("tools.gpu_check", "tools.gpu_check.plain"):
            command = [sys.executable, "-m", module]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 1
            assert done.stderr.startswith("error: device 'cuda' needs an NVIDIA GPU")
            assert len(done.stderr.splitlines()) == 1
            assert "; run this where there is one" in done.stderr and "cpu" not in done.stderr
    else:
        pytest.skip("there is a GPU")


def test_gpu_check_needs_a_place_for_its_report(tmp_path):
    """Before the minutes of work that it would tell of."""
    for path, wrong in ((tmp_path, "is a folder"), (tmp_path / "no" / "report.json", "is in no folder that exists")):
        result = CliRunner().invoke(app, ["--output", str(path)])
        assert result.exit_code == 2 and f"found {path}, which {wrong}" in result.stderr


def test_gpu_check_knows_its_parts(tmp_path, capsys):
    words = ["--output", str(tmp_path / "report.json"), "--only", "kernel"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "--only: expected some of machine, vectors, " in result.stderr
    assert plain.main(words) == 2 and "; found 'kernel'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [
        ("passes", "passed", None),
        ("misses", "failed", "3 of 4 labels differ; and a row"),
        ("skips", "skipped", "this machine has one GPU"),
        ("lacks", "skipped", "the package no_such_package is not installed"),
        ("raises", "failed", "MemoryError: no memory on the card"),
        ("exits", "failed", "SystemExit: 3"),
        ("interrupts", "failed", "KeyboardInterrupt: "),
        ("unwritable", "failed", "TypeError: Object of type object is not JSON serializable"),
        ("not_there", "failed", f"AttributeError: module '{FAULTS}' has no attribute 'not_there'"),
    ],
)
def test_what_a_part_may_do(name, status, why):
    found = measure(f"{FAULTS}:{name}", DRY, ["and a row"] if name == "misses" else [])
    assert (found["status"], found.get("why")) == (status, why)
    assert name != "misses" or found["figure"] == 3  # figures of a part that failed are kept


def run_parts(parts, path, monkeypatch, minutes=None):
    """The report after each part that was run, and the last."""
    seen = []
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    say = lambda text: seen.append(json.loads(path.read_text()) if path.exists() else None)  # noqa: E731
    passed = gpu_check.run_check(path, DRY, [], minutes, say)
    return passed, seen, json.loads(path.read_text())


@pytest.mark.slow
def test_no_end_of_a_part_loses_the_others(tmp_path, monkeypatch):
    """A crash, a hang and an exit: each is named, with what it said last, and the rest goes on."""
    monkeypatch.setattr(Part, "limit", property(lambda part: 3.0 if part.name == "hangs" else 60.0))
    names = ["passes", "crashes", "hangs", "raises", "passes again"]
    parts = [Part(name, f"{FAULTS}:{name.split()[0]}", 0.1) for name in names]
    passed, seen, report = run_parts(parts, tmp_path / "report.json", monkeypatch)
    assert not passed and report["finished"]
    found = report["parts"]
    assert [found[name]["status"] for name in names] == ["passed", "ended", "ended", "failed", "passed"]
    assert found["crashes"]["why"] == "exit -11 before it gave its figures"
    assert found["hangs"]["why"] == "took more than 3 s" and found["hangs"]["seconds"] < 20
    for name, said in (("crashes", "before the crash"), ("hangs", "before it hung"), ("raises", "before the end")):
        assert f"said {said}" in found[name]["log"]
    # While a part runs, the file has all that came before it.
    assert [list(each["parts"]) if each else [] for each in seen[::2]][:5] == [names[:count] for count in range(5)]


def test_what_does_not_fit_into_the_time_is_named(tmp_path, monkeypatch):
    parts = [Part("long", f"{FAULTS}:hangs", 30.0), Part("short", f"{FAULTS}:passes", 0.1)]
    passed, _, report = run_parts(parts, tmp_path / "report.json", monkeypatch, minutes=10)
    assert passed and report["parts"]["long"]["why"] == "takes about 30 minutes, 10.0 were left"
    assert report["parts"]["short"]["status"] == "passed" and report["parts"]["short"]["device"] == "cpu"


def test_every_part_is_there():
    import importlib

    for part in PARTS:
        module, name = part.function.split(":")
        assert callable(getattr(importlib.import_module(module), name))
        for path in part.arguments:
            assert "/" not in path or (ROOT / path).is_file()
    assert sum(part.minutes for part in PARTS[:8]) < 10  # the parts of the merge core fit into ten minutes


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    # Of the two full sizes one is enough: they differ in the backend alone.
    [pytest.param(one, marks=pytest.mark.proof if one.name == "tensorrt_rtx, full size" else ()) for one in PARTS],
    ids=lambda part: part.name,
)
def test_dry_run(part, tmp_path, monkeypatch):
    """Stand-ins walk through the part: all that is left is what the GPU itself does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(ROOT / ".pytest_cache" / "dry"))
    report = tmp_path / "report.json"
    result = CliRunner().invoke(app, ["--dry", "--repeat", "1", "--only", part.name, "--output", str(report)])
    found = json.loads(report.read_text())["parts"][part.name]
    assert result.exit_code == 0, found
    assert found["status"] == ("skipped" if part.name.startswith("tests of") else "passed"), found


HIDE = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
"""


@pytest.mark.slow
def test_smallest_kit(tmp_path):
    """With NumPy, torch and a compiler: the parts of the merge core run, the others say which package they need."""
    hidden = {"cv2", "typer", "rich", "threadpoolctl", "diffusers", "onnxruntime", "openvino", "tensorrt_rtx", "pytest"}
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(hidden=hidden))
    cache = str(ROOT / ".pytest_cache" / "dry")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": cache}
    command = [sys.executable, "-m", "tools.gpu_check.plain", "--dry", "--repeat", "1", "--output", tmp_path / "r.json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    found = json.loads((tmp_path / "r.json").read_text())["parts"]
    assert done.returncode == 0, found
    core = [part.name for part in PARTS[:8]]
    assert [found[name]["status"] for name in core] == ["passed"] * len(core)
    for part in PARTS[8:]:
        assert found[part.name]["status"] == "skipped" and "is not installed" in found[part.name]["why"]


def test_results_are_read(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="a" name="x"/>'
        '<testcase classname="a" name="y"><skipped message="no tool"/></testcase>'
        '<testcase classname="a" name="z"><failure message="wrong"/></testcase></testsuite></testsuites>'
    )
    assert suites.read_results(path) == {
        "passed": 1,
        "failed": 1,
        "skipped": 1,
        "reasons": {"a::y": "no tool", "a::z": "wrong"},
    }


def test_machine_code_is_counted():
    text = """
                Function : _ZN7diffseg11member_sumsENS_5MeansE
        /*0010*/                   LDS.128 R4, [R1] ;   /* 0x000 */
        /*0020*/              @!P0 HMMA.1688.F32.TF32 R4, R8, R10, R4 ;
                Function : _ZN7diffseg5claimEPKjiiPKiPiS3_
        /*0010*/                   LD.E R4, [R1] ;
    """
    assert kernels.sass_counts(text) == {"member_sums": {"LDS.128": 1, "HMMA.1688.F32.TF32": 1}}


@pytest.mark.slow
def test_engines_are_compared_stage_by_stage():
    """The measuring itself, with the CPU in the GPU's place: an engine agrees with itself."""
    found = gpu_plans.compare(EMBEDDED, "cpu", 1)
    assert found["row_kl"] < 1e-9 and found["labels_differ"] == 0 and found["missed"] == []
    assert set(found["milliseconds"]) == {"resize", "network", "merge", "labels", "total"}
    assert 0 < found["merge_share"] < 1


def test_programs_take_turns():
    calls = []
    times = gpu_plans.take_turns(lambda: calls.append("a"), lambda: calls.append("b"), 2, warm=1)
    assert calls == ["a", "b"] * 3 and [len(found) for found in times] == [2, 2]

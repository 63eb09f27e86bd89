"""A plan that cannot run says why in one line: what was expected, what was found, and what to do."""

import contextlib
import importlib.util
import json
import re
import shlex
import shutil

import pytest
from typer.testing import CliRunner

from export.__main__ import app as export_app
from runtime import DiffSegError
from runtime.engine.backends.tensorrt_library import import_flavour
from runtime.engine.plan import check_library, read_plan
from runtime.engine.registry import EMBEDDED, open_engine
from runtime.engine.spec import sidecar_path
from runtime.gpu import driver as cuda
from runtime.segment import app
from tests.runtime.engine.plans.conftest import VERSION, write_plan


def refuses(path, match, device="auto", backend=None):
    with pytest.raises(DiffSegError, match=match) as caught:
        open_engine(path, device, backend)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path, **fields):
    sidecar = sidecar_path(path)
    data = json.loads(sidecar.read_text())
    data["plan"] |= fields
    sidecar.write_text(json.dumps(data))


COMMAND = r"build .*again.* with 'python -m export plan \S*unet.onnx"  # as far as it is known without a sidecar
REBUILD = COMMAND + " --flavour tensorrt"


def test_missing_sidecar(tmp_path):
    path = write_plan(tmp_path)
    sidecar_path(path).unlink()
    refuses(path, rf"unet.plan has no sidecar: expected unet.plan.json beside it.*copy it too, or {COMMAND}'")


def test_sidecar_of_another_file(tmp_path, tensorrt):
    path = write_plan(tmp_path)
    shutil.copy(sidecar_path(EMBEDDED), sidecar_path(path))
    refuses(path, rf"unet.plan.json describes an ONNX engine; expected a plan.*{COMMAND}'")
    path = write_plan(tmp_path, content=b"other")
    path.write_bytes(b"thing")  # as long, but another
    refuses(path, rf"is damaged, or its sidecar belongs to another plan: expected SHA-256 .*…, found .*…; .*{REBUILD}'")
    path.write_bytes(b"longer than it was")
    refuses(path, rf"has 18 bytes, its sidecar names 5: the two come .* builds; copy both again, or {REBUILD}'")


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"schema": 1}', "\xff", "plan: cut"])
def test_sidecar_that_is_no_sidecar(tmp_path, text):
    path = write_plan(tmp_path)
    sidecar_path(path).write_bytes(text.encode("latin-1"))
    refuses(path, rf"unet.plan.json.*; copy the plan's own sidecar, or {COMMAND}'")


@pytest.mark.parametrize(
    "fields",
    [
        *(
            {"flavour": "magic"},
            {"flavour": 3},
            {"size": "5"},
            {"version": None},
            {"gpu": 4},
            {"compute_capability": 8.9},
            {"engine": 3},
        ),
        *({"batch": [1, "2", 3]}, {"batch": 3}, {"batch": [1, 2]}, {"batch": [-1, 0, 4]}, {"targets": [8.6]}),
        *({"targets": "8.6"}, {"workspace": "1"}, {"optimization_level": None}, {"tf32": "no"}),
    ],
)
def test_sidecar_with_a_wrong_field(tmp_path, fields):
    path = write_plan(tmp_path)
    edit(path, **fields)
    name = "magic" if fields == {"flavour": "magic"} else next(iter(fields))
    refuses(path, rf"unet.plan.json (lacks or mistypes a field|describes a plan of) .*{name}.*{COMMAND}'")


@pytest.mark.parametrize("plan", ["text", [1], 3])
def test_sidecar_whose_plan_is_no_plan(tmp_path, plan):
    path = write_plan(tmp_path)
    data = json.loads(sidecar_path(path).read_text()) | {"plan": plan}
    sidecar_path(path).write_text(json.dumps(data))
    refuses(path, r"unet.plan.json lacks or mistypes a field \(plan: ")


def test_truncated(tmp_path):
    path = write_plan(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    refuses(path, rf"has 5 bytes, its sidecar names 6: the plan is cut short; copy both again, or {REBUILD}'")


def test_a_folder_and_nothing(tmp_path):
    (tmp_path / "unet.plan").mkdir()
    refuses(tmp_path / "unet.plan", r"unet.plan is a folder; expected an engine file, such as \S*unet.plan/NAME.plan")
    refuses(tmp_path / "no.plan", r"no engine \S*no.plan; check the path, or export one with")


def test_no_package(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "tensorrt" in name else find(name))
    for flavour, extra in (("tensorrt", "tensorrt"), ("tensorrt_rtx", "rtx")):
        path = write_plan(tmp_path, flavour=flavour)
        refuses(
            path, rf"unet.plan needs the package {flavour}, which is not installed; pip install 'diffseg\[{extra}\]'"
        )


def test_wrong_flavour(tmp_path):
    path = write_plan(tmp_path, flavour="tensorrt_rtx", version="1.7.1.116")
    for backend in ("tensorrt", "onnxruntime"):
        refuses(
            path,
            rf"was built with tensorrt_rtx 1.7.1.116 and runs only with it; .*found '{backend}'",
            backend=backend,
        )


def test_wrong_version(tmp_path, tensorrt):
    path = write_plan(tmp_path, version="10.13.3.9")
    refuses(
        path, rf"built with TensorRT 10.13.3.9 and runs only with that version; found TensorRT {VERSION}; {REBUILD}"
    )
    path = write_plan(tmp_path, version="12.0.0.1", version_compatible=True)
    refuses(
        path, r"runs only with that version or newer of major 12; found TensorRT 11.4.0.106; .* --version-compatible'"
    )


def test_majors_that_are_compatible(tmp_path):
    """TensorRT names 8 to 10 and 10 to 11, and no others."""

    def runs(built, here):
        path = write_plan(tmp_path, version=built, version_compatible=True)
        with contextlib.suppress(DiffSegError):
            check_library(path, read_plan(path)[1], here)
            return True

    assert runs("10.3.0.30", "10.13.3.9") and runs("8.6.1", "10.0.1") and runs("10.13.3.9", "11.4.0.106")
    assert not runs("8.6.1", "11.4.0.106") and not runs("11.0.0", "12.0.0") and not runs("10.13.3.9", "10.3.0.30")


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, ""),
        (
            {"optimization_level": 0, "workspace": 512 * 2**20, "tf32": True},
            "--optimization-level 0 --workspace 512 --tf32",
        ),
        (
            {"version_compatible": True, "hardware_compatible": True, "batch": None},
            "--profile 1,1,3 --version-compatible --hardware-compatible",
        ),
        ({"flavour": "tensorrt_rtx", "targets": ("8.6", "12.0")}, "--targets 8.6,12.0"),
    ],
)
def test_the_command_that_builds_again_has_every_option(tmp_path, monkeypatch, fields, options):
    """As the sidecar keeps them; and the command, given, asks for the same plan."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    path = write_plan(folder, **fields)
    plan = read_plan(path)[1]
    path.write_bytes(b"cut")
    command = re.search(r"'(python -m export plan .*)'$", refuses(path, "cut short"))[1]
    words = shlex.split(command)
    assert words[:5] == ["python", "-m", "export", "plan", str(path.with_suffix(".onnx"))]
    assert words[5:] == ["--flavour", plan.flavour, *options.split()]
    asked = []
    monkeypatch.setattr("export.plan.build.check_request", lambda request: request.flavour)
    monkeypatch.setattr("export.commands.plan.write_plan", lambda engine, output, request: asked.append(request))
    assert CliRunner().invoke(export_app, words[3:]).exit_code == 0
    for name in ("flavour", "optimization_level", "workspace", "tf32", "targets", "version_compatible"):
        assert getattr(asked[0], name) == getattr(plan, name)
    assert (asked[0].hardware_compatible, asked[0].profile) == (plan.hardware_compatible, plan.batch)


def test_the_command_names_the_engine_that_the_plan_was_built_of(tmp_path):
    """Which may have another name and folder; copied to another machine, the two lie beside each other."""
    (tmp_path / "plans").mkdir()
    path = write_plan(tmp_path / "plans", engine="../engines/sd15.onnx")
    path.write_bytes(b"cut")
    refuses(path, rf"'python -m export plan {path.parent}/sd15.onnx --flavour tensorrt --output {path}'$")
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "sd15.onnx").touch()
    refuses(path, rf"'python -m export plan {tmp_path}/engines/sd15.onnx --flavour tensorrt --output {path}'$")


def test_older_version_compatible_plan_runs(tensorrt, tmp_path):
    path = tensorrt.prepare(tmp_path, version="10.13.3.9", version_compatible=True)
    engine = open_engine(path)
    assert engine._loaded.runtime.engine_host_code_allowed is True


def test_wrong_gpu(tmp_path, tensorrt, caplog):
    path = write_plan(tmp_path, gpu="Orin", compute_capability="8.7")
    refuses(path, rf"is for GPUs of compute capability 8.7 \(Orin\); found Stand-in of 8.9; {REBUILD}'")
    path = tensorrt.prepare(tmp_path, gpu="Ampere", compute_capability="8.6", hardware_compatible=True)
    open_engine(path)
    assert caplog.messages == []
    path = tensorrt.prepare(tmp_path, gpu="Another Ada")
    open_engine(path)
    assert "was built on Another Ada and runs on Stand-in: it may be slower" in caplog.messages[0]
    refuses(path, r"device 'cuda:1': expected cuda:0 to cuda:0", device="cuda:1")


def test_older_gpu_than_the_plan_is_for(tmp_path, tensorrt, monkeypatch):
    monkeypatch.setattr(cuda.gpu(0), "capability", "7.5")
    path = write_plan(tmp_path, hardware_compatible=True)
    refuses(path, r"compute capability 8.0 or newer; found Stand-in of 7.5; .* --hardware-compatible'")


def test_wrong_platform(tmp_path, tensorrt):
    path = write_plan(tmp_path, platform="windows amd64")
    refuses(path, rf"was built on windows amd64 and runs only there; found .*; {REBUILD}'")


def test_device_cpu(tmp_path, tensorrt):
    refuses(write_plan(tmp_path), r"runs on an NVIDIA GPU; found device 'cpu'; use the .onnx engine", device="cpu")


def test_no_driver(tmp_path, tensorrt, no_driver):
    found = refuses(write_plan(tmp_path), r"unet.plan: device 'cuda' needs an NVIDIA GPU and its driver, found none")
    assert found.endswith("a plan runs only on a GPU, the .onnx engine also on a CPU")


def test_refused_by_tensorrt_itself(tmp_path, tensorrt):
    path = tensorrt.prepare(tmp_path)
    tensorrt.refuses = True
    refuses(
        path, rf"TensorRT {VERSION} cannot load \S*unet.plan \(Serialization assertion failed magic tag .*{REBUILD}'"
    )


def test_library_that_does_not_load_or_start(tmp_path, tensorrt, monkeypatch):
    path = tensorrt.prepare(tmp_path)

    def nothing(logger):
        logger.log(1, "CUDA driver version is insufficient")
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(tensorrt, "Runtime", nothing)
    refuses(path, r"TensorRT does not start \(CUDA driver version is insufficient\); check the NVIDIA driver")

    def broken(name):
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(
        DiffSegError, match=r"tensorrt is installed and cannot be loaded \(libnvinfer.so.11: .*pip install"
    ):
        import_flavour("tensorrt")


def test_plan_of_another_network(tmp_path, tensorrt):
    path = tensorrt.prepare(tmp_path)
    tensorrt.shapes = tensorrt.shapes | {"frame": (1, 128, 128, 3)}
    refuses(path, rf"has inputs and outputs .*128, 128.* its sidecar says .*256, 256.*; {REBUILD}'")


def test_command_line_says_it_in_one_line(tmp_path):
    path = write_plan(tmp_path)
    sidecar_path(path).unlink()
    result = CliRunner().invoke(app, ["picture.png", "--engine", str(path)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1

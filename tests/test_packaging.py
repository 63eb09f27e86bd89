"""What users install: the wheel, the command `diffseg`, the extras, and what happens without them."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

import runtime
from runtime.cli import COMMANDS
from runtime.terminal import EXTRAS, fresh_process
from tests.test_rooms import MAY_IMPORT, modules

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCENE = ROOT / "tools" / "pictures" / "scene.png"
# Packages that the program brings which alone imports a module.
BROUGHT = {"runtime.hosts.gstreamer.python.gstdiffseg": {"gi"}}
# Where a package's name to install it by is not the name to import it by, in lower case and with hyphens.
DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image", "cv2": "opencv-python"}


def distribution(package):
    return DISTRIBUTIONS.get(package, package.replace("_", "-"))


def required(requirements):
    return {re.match(r"[\w.-]+", line)[0] for line in requirements}


def run(command, folder, **environment):
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600, env={**os.environ, **environment}
    )


@pytest.fixture
def crowded(tmp_path):
    """A folder with packages of the user's own that are called like ours, and a picture."""
    for name in ("runtime", "export", "tools", "engines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the user\\'s own package was imported')\n")
        (tmp_path / name / "__main__.py").write_text("")
    shutil.copy(SCENE, tmp_path / "photo.png")
    return tmp_path


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """What pip makes of the console script: a file in a folder of its own, which Python puts first on its path."""
    path = tmp_path_factory.mktemp("bin") / "diffseg"
    assert PROJECT["scripts"] == {"diffseg": "runtime.cli:main"}
    path.write_text("import sys\nfrom runtime.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n")
    return path


@pytest.fixture
def diffseg(script):
    def call(*arguments, folder):
        return run([sys.executable, str(script), *arguments], folder, PYTHONPATH=str(ROOT))

    return call


def test_extras_are_those_of_the_project():
    extras = PROJECT["optional-dependencies"]
    for package, names in EXTRAS.items():
        for name in names:
            installs = {line.removesuffix("-gpu") for line in required(extras[name])}
            assert distribution(package) in installs, f'{package} is not in the extra "{name}"'


def test_extras_pull_no_wheel_that_cannot_work_on_arm():
    """On ARM, JetPack brings TensorRT, PyPI's wheels of it are for servers, and onnxruntime-gpu has no wheel."""
    from packaging.requirements import Requirement

    for name, package in (("tensorrt", "tensorrt"), ("gpu", "onnxruntime-gpu")):
        (line,) = map(Requirement, PROJECT["optional-dependencies"][name])
        assert line.name == package
        installs = {machine: line.marker.evaluate({"platform_machine": machine}) for machine in ("aarch64", "x86_64")}
        assert installs == {"aarch64": False, "x86_64": True}


@pytest.mark.slow
def test_every_imported_package_is_one_that_the_project_installs():
    known = {*sys.stdlib_module_names, *MAY_IMPORT}
    installed = required(PROJECT["dependencies"])
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                named = [node.module]
            for package in {one.partition(".")[0] for one in named} - known - BROUGHT.get(name, set()):
                assert package in EXTRAS or distribution(package) in installed, f"{name} imports {package}"


def test_commands_are_modules_and_their_extras_exist():
    for name, command in COMMANDS.items():
        assert command.extra in PROJECT["optional-dependencies"], name
        assert command.module in modules(), name


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(diffseg, crowded, arguments):
    done = diffseg(*arguments, folder=crowded)
    assert (done.returncode, done.stderr) == (0, "")
    for name, command in COMMANDS.items():
        assert re.search(rf'^  {name} .*pip install "diffseg\[{command.extra}\]"', done.stdout, re.MULTILINE)


def test_the_version_is_written_once(diffseg, crowded):
    done = diffseg("--version", folder=crowded)
    assert (done.returncode, done.stdout) == (0, f"diffseg {runtime.__version__}\n")
    assert PROJECT["dynamic"] == ["version"]
    newest = re.search(r"^## \[([^]]+)]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == runtime.__version__


def test_an_unknown_command_is_named(diffseg, crowded):
    done = diffseg("photo.png", folder=crowded)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "expected a command (segment, export" in done.stderr and "found 'photo.png'" in done.stderr


@pytest.mark.slow
def test_diffseg_ignores_folders_named_like_its_packages(diffseg, crowded):
    done = diffseg("segment", "photo.png", folder=crowded)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (crowded / "segmented").iterdir()) == ["photo_labels.png", "photo_overlay.png"]


@pytest.mark.parametrize("name", COMMANDS)
def test_usage_lines_name_the_command(diffseg, crowded, name):
    done = diffseg(name, "--help", folder=crowded)
    assert done.returncode == 0, done.stderr
    assert f"Usage: diffseg {name} " in done.stdout
    failed = diffseg(name, "--no-such-option", folder=crowded)
    assert failed.returncode == 2 and f"diffseg {name}" in failed.stderr


@pytest.mark.parametrize("page", ["CHANGELOG.md", "CONTRIBUTING.md"])
def test_what_a_page_names_exists(page):
    text = (ROOT / page).read_text()
    links = [target.split("#")[0] for target in re.findall(r"\]\((?!http)([^)]+)\)", text)]
    registries = re.findall(r"`((?:runtime|export|tests)/[\w./]+)`", text)
    for path in links + registries:
        assert (ROOT / path).exists(), path


@pytest.mark.slow
@pytest.mark.parametrize("readme", ["README.md", "runtime/README.md"])
def test_python_code_of_the_readmes_runs(tmp_path, readme):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(), re.DOTALL)
    (tmp_path / "engines").symlink_to(ROOT / "engines")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    shutil.copy(SCENE, tmp_path / "photo.jpg")
    given = "import numpy as np\npyramid = [np.full((256, 256), 1 / 256, np.float32)]\n"
    used = "for name in ('areas', 'middles'):\n    if name in globals():\n        assert len(list(globals()[name]({})))"
    ends = [used.format('["photo.jpg"] * 2 if name == "areas" else [frame]')]
    script = tmp_path / "code.py"
    script.write_text("\n".join([given, *blocks, *ends]))
    done = run([sys.executable, str(script)], tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr


def test_a_fresh_process_ignores_folders_named_like_its_packages(crowded):
    done = run(fresh_process("export", "plan", "--help"), crowded)
    assert done.returncode == 0 and "Usage: diffseg export plan" in done.stdout, done.stderr


# Command, and the packages that it comes to with these arguments. `small.onnx` was exported from `pipeline`.
NEEDS = {
    "runtime.segment photo.png": "openvino onnxruntime",
    "runtime.segment photo.png --backend onnxruntime": "onnxruntime",
    "runtime.segment photo.png --backend openvino": "openvino",
    "runtime.segment clip.avi": "av scipy",
    "runtime.segment photo.png --save coco": "pycocotools",
    "runtime.serve --port 0": "fastapi uvicorn python_multipart websockets prometheus_client",
    "runtime.bulk photos --output new": "ray pyarrow pycocotools",
    "export ./pipeline --output new": "torch diffusers transformers safetensors onnx onnxscript onnx_ir onnxruntime "
    "scipy huggingface_hub",
    "export list ./pipeline": "torch diffusers transformers safetensors huggingface_hub",
    "export check small.onnx ./pipeline": "torch diffusers transformers safetensors onnxruntime scipy huggingface_hub",
    "export quantize small.onnx --images photos --output int8": "onnx onnxruntime scipy",
    "export plan small.onnx": "tensorrt tensorrt_rtx",
    "tools.evaluate scenes --count 1": "skimage scipy",
    "tools.evaluate bsds500 photos": "skimage scipy PIL",
    "tools.evaluate agreement small.onnx small.onnx photos": "scipy",
    "tools.benchmark video --scenes 1 --frames 12": "scipy",
    "tools.benchmark pipeline": "scipy av",
    "tools.benchmark frame --plot plot.png": "torch openvino matplotlib",
    "tools.benchmark scaling --plot plot.png": "torch diffusers matplotlib",
    "tools.benchmark plan": "torch tensorrt_rtx",
    "tools.benchmark export": "torch onnxscript",
    "runtime.page --output site": "onnxruntime",
    "tools.gpu_check": "torch tensorrt_rtx",
    "tools.tiny train --photos photos --output new --size test": "torch diffusers",
    "tools.tiny tune ./pipeline --photos photos --output new": "torch",
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, small_pipeline, small_engine):
    import cv2
    import numpy as np

    folder = tmp_path_factory.mktemp("workplace")
    (folder / "pipeline").symlink_to(small_pipeline)
    for suffix in ("", ".json"):
        shutil.copy(f"{small_engine}{suffix}", folder / f"small.onnx{suffix}")
    (folder / "photos").mkdir()
    for name in ("photo.png", *(f"photos/{index}.png" for index in range(4))):
        shutil.copy(SCENE, folder / name)
    writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for index in range(3):
        writer.write(np.full((48, 64, 3), 40 * index, np.uint8))
    writer.release()
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_command_names_the_extra_of_a_missing_package(workplace):
    cases = [
        {"module": words[0], "arguments": words[1:], "hidden": package, "folder": str(workplace), "seconds": 120}
        for command, packages in NEEDS.items()
        for words in [command.split()]
        for package in packages.split()
    ]
    of_commands = set(EXTRAS) - {"cvat_sdk"}  # a file for CVAT's own program
    assert {case["hidden"] for case in cases} == of_commands
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "hiding" / "run_without.py")],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    wrong, named = [], set()
    for case, result in zip(cases, json.loads(done.stdout), strict=True):
        last = "".join(result["stderr"].splitlines()[-1:])
        fits = any(f"diffseg[{extra}]" in last for extra in EXTRAS[case["hidden"]])
        if fits:
            named.add(case["hidden"])
        elif result["status"] != 0 and case["module"] != "tools.gpu_check":  # which ends where no GPU is
            wrong.append(f"{case} ended with {result['status']}: {result['stderr']}")
        if "Traceback" in result["stderr"]:
            wrong.append(f"{case} shows a traceback: {result['stderr']}")
    assert not wrong, "\n\n".join(wrong)
    assert named == of_commands - {"tensorrt"}  # a plan is built by either of two packages


def test_a_missing_module_of_our_own_keeps_its_traceback(tmp_path):
    code = (
        "import typer\nfrom runtime.terminal import run\napp = typer.Typer(pretty_exceptions_enable=False)\n"
        "@app.command()\ndef main():\n    __import__('NAME')\n"
        "run(app, 'program')"
    )
    for name in ("runtime.no_such_module", "no_such_package", "numpy.no_such_module"):
        script = tmp_path / "program.py"
        script.write_text(code.replace("NAME", name))
        done = run([sys.executable, str(script)], tmp_path, PYTHONPATH=str(ROOT))
        assert done.returncode == 1 and f"ModuleNotFoundError: No module named '{name}'" in done.stderr


@pytest.mark.slow
def test_nothing_is_unpickled():
    """What is read comes from strangers: arrays without objects, weights as safetensors, tensors alone."""
    calls = re.compile(r"\b(?:(?:import|from) (?:joblib|dill|shelve|marshal|pickle)|torch\.load|np\.load)\b[^\n]*")
    allowed = re.compile(r"torch\.load\([^\n]*weights_only=True\)|np\.load\((?!.*allow_pickle=True)")
    found = [
        f"{name}: {call[0]}"
        for name, path in modules().items()
        for call in calls.finditer("\n".join(line.split("#")[0] for line in code_of(path)))
        if not allowed.match(call[0])
    ]
    assert not found, "\n".join(found)
    texts = {name: path.read_text() for name, path in modules().items() if "torch.load" in path.read_text()}
    assert all(name.startswith("tools.tiny") for name in texts), texts.keys()
    assert "use_safetensors" in (ROOT / "export" / "model" / "load.py").read_text()


def code_of(path):
    """The lines of a module without its docstrings."""
    tree = ast.parse(path.read_text())
    texts = {
        number
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for number in range(node.lineno, node.end_lineno + 1)
    }
    return [line for number, line in enumerate(path.read_text().splitlines(), 1) if number not in texts]


def test_oldest_versions_are_those_of_the_project():
    """The file of constraints has the floors that the project declares."""
    pinned = dict(line.split("==") for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines() if "==" in line)
    extras = PROJECT["optional-dependencies"]
    declared = [*PROJECT["dependencies"], *(line for name, lines in extras.items() if name != "dev" for line in lines)]
    floors = dict(re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?>=([\d.]+)", "\n".join(declared), re.MULTILINE))
    for name in {*pinned} - {"pytest"}:
        assert pinned[name].startswith(floors[name]), f"{name}: {pinned[name]} in the file, {floors[name]} declared"
    assert {re.match(r"[\w.-]+", line)[0] for line in PROJECT["dependencies"]} <= {*pinned}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    done = run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], folder)
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    assert path.name == f"diffseg-{runtime.__version__}-py3-none-any.whl"
    return path


@pytest.mark.slow
def test_the_wheel_has_the_runtime_the_export_stage_and_the_embedded_engine(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"runtime", "export", "engines"}
    packaged = [
        path.relative_to(ROOT).as_posix()
        for top in ("runtime", "export")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    native = {Path(name).suffix for name in packaged if name.startswith("runtime/native/")}
    assert {".cu", ".cuh", ".h"} <= native
    assert names >= {*packaged, "engines/tiny.onnx", "engines/tiny.onnx.json", "engines/README.md"}


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment_segments(wheel, crowded, tmp_path_factory):
    place = tmp_path_factory.mktemp("venv")
    run([sys.executable, "-m", "venv", "--without-pip", str(place)], place)
    scripts = place / ("Scripts" if os.name == "nt" else "bin")
    python, program = str(scripts / "python"), str(scripts / "diffseg")
    done = run([sys.executable, "-m", "pip", "--python", python, "install", "-q", f"{wheel}[cpu]"], place)
    assert done.returncode == 0, done.stderr

    done = run([program, "segment", "photo.png", "--json", "--output", "by_script"], crowded)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert line["segments"] > 1 and line["input"] == "photo.png"

    alone = tmp_path_factory.mktemp("alone")
    shutil.copy(SCENE, alone / "photo.png")
    done = run([python, "-m", "runtime.segment", "photo.png"], alone)
    assert done.returncode == 0, done.stderr
    for name in ("photo_overlay.png", "photo_labels.png"):
        assert (alone / "segmented" / name).read_bytes() == (crowded / "by_script" / name).read_bytes()

    done = run([program, "export", "somebody/model", "--output", "x"], alone)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r'error: .*; pip install "diffseg\[export\]"\n', done.stderr)
    assert run([program, "--version"], alone).stdout == f"diffseg {runtime.__version__}\n"
    assert run([python, "-m", "tools.evaluate"], alone).returncode == 1  # no tools in the wheel

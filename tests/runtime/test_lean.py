"""The runtime stays lean: neither importing it nor asking for help loads what it does not need."""

import subprocess
import sys

import pytest


def modules_after(code):
    out = subprocess.run(
        [sys.executable, "-c", code + "; import sys; print(*sys.modules)"], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    return set(out.stdout.split())


def test_import_is_light():
    loaded = modules_after("import runtime")
    assert not loaded & {"torch", "onnxruntime", "cv2", "numpy", "export"}


@pytest.mark.slow
def test_segmenting_needs_no_torch(tmp_path):
    loaded = modules_after(
        "import numpy as np, runtime; runtime.Segmenter.open()(np.zeros((20, 30, 3), np.uint8)); "
        "import runtime.segment, runtime.frames, runtime.outputs"
    )
    assert loaded & {"onnxruntime", "openvino"}
    assert not loaded & {"torch", "diffusers", "transformers", "export", "scipy", "skimage"}


@pytest.mark.parametrize("arguments", ["--help", "--version", "segment --help", "export --help", "export plan --help"])
def test_diffseg_answers_without_heavy_packages(arguments):
    code = (
        f"import sys; sys.argv = ['diffseg', *{arguments.split()!r}]\n"
        "import contextlib, io\nfrom runtime.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main()\n"
        "pass"
    )
    assert not modules_after(code) & {"torch", "onnxruntime", "openvino", "cv2", "numpy"}


def test_help_is_light():
    code = (
        "import sys; sys.argv = ['segment', '--help']\n"
        "import contextlib, io, runpy\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    runpy.run_module('runtime.segment', run_name='__main__')\n"
        "pass"
    )
    assert not modules_after(code) & {"torch", "onnxruntime", "cv2", "numpy"}

"""The product of two tiles: its tensor-core body on an emulated instruction, and what the compiler makes of it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from runtime.errors import DiffSegError
from runtime.native import build

SOURCES = Path(build.__file__).parent
PROGRAM = Path(__file__).with_name("tile.cpp")
TENSOR = "-DDIFFSEG_CPU_TENSOR"
RIGHT = "along k: 0 wrong, 0 conflicts\nalong n: 0 wrong, 0 conflicts\n"


def products(folder, *flags, sources=SOURCES):
    """What the program prints with the body that the flags choose."""
    command = ["g++", "-std=c++17", "-O1", *build.STRICT, "-DDIFFSEG_CPU", *flags, f"-I{sources}", PROGRAM, "-pthread"]
    subprocess.run([*command, "-o", folder / "tile"], check=True)
    return subprocess.run([folder / "tile"], check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_emulated_tensor_cores(tmp_path):
    assert products(tmp_path, TENSOR) == RIGHT


def test_plain_body(tmp_path):
    assert products(tmp_path).count(" 0 wrong") == 2


# Every place where an index of a fragment is chosen, and what it could have been by mistake.
SWAPS = [
    ("pair ^ row % 2 * 4", "pair"),
    ("{upper[0], lower[0], upper[1], lower[1]}", "{upper[0], upper[1], lower[0], lower[1]}"),
    ("{upper[2], lower[2], upper[3], lower[3]}", "{upper[2], lower[2], lower[3], upper[3]}"),
    ("pair % 4 * 4 + pair / 4 * 2", "pair % 4 * 2 + pair / 4 * 8"),
    ("k / 4 + k % 4 / 2 * 4", "k / 2"),
    ("threadIdx.x) % 32 / 4; }", "threadIdx.x) % 8; }"),
    ("threadIdx.x) % 4; }", "threadIdx.x) % 32 / 8; }"),
    ("threadIdx.x) / 64 * 16 + group()", "threadIdx.x) / 64 * 32 + group()"),
    ("row() + i % 2 * 8, quarter() + i / 2 * 4)", "row() + i / 2 * 8, quarter() + i % 2 * 4)"),
    ("i / 2 * 16 + group() / 2 * 4 + i % 2 * 2 + group() % 2", "i * 8 + group()"),
    ("i % 2 * 16 + group() * 2)", "i % 2 * 16 + group())"),
    ("quarter() + (ALONG == Along::K ? 0 : i / 2 * 4)", "quarter() + (ALONG == Along::K ? 0 : i % 2 * 4)"),
    ("{b[2 * half], b[2 * half + 1]}", "{b[2 * half + 1], b[2 * half]}"),
    ("ALONG == Along::K ? half : i / 2, j", "ALONG == Along::K ? 1 - half : i / 2, j"),
    ("ALONG == Along::K ? i : i % 2 * 2 + half", "ALONG == Along::K ? i : i % 2 + 2 * half"),
    ("sum_[product][j], a[k][product]", "sum_[product][j], a[k][1 - product]"),
    ("i / 2 * 8 + i % 2 * 64", "i % 2 * 8 + i / 2 * 64"),
    ("one[1] : two[0]", "two[0] : one[1]"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("right", "wrong"), SWAPS)
def test_a_swapped_index_is_seen(right, wrong, tmp_path):
    """Every swap gives wrong elements, but for the first: that one only costs time, in a conflict of banks."""
    copy = tmp_path / "native"
    shutil.copytree(SOURCES, copy)
    text = (copy / "tile.cuh").read_text()
    assert text.count(right) == 1
    (copy / "tile.cuh").write_text(text.replace(right, wrong))
    found = products(tmp_path, TENSOR, sources=copy)
    assert found.count(" 0 wrong") < 2 or (wrong == "pair" and found.count(" 0 conflicts") < 2)


@pytest.mark.slow
def test_the_compiler_uses_tensor_cores_and_shared_memory(tmp_path):
    """Products are of 8 elements of k, and every load from shared memory says that it is one."""
    try:
        nvcc = build.find_nvcc()
    except DiffSegError as error:
        pytest.skip(str(error))
    path = tmp_path / "core.ptx"
    subprocess.run([nvcc, "-std=c++17", "-O3", "-ptx", "-arch=compute_80", build.SOURCE, "-o", path], check=True)
    text = path.read_text()
    bodies = dict(re.findall(r"\.entry \w*?(divergence|member_sums)\w*\((.*?)\n}", text, re.S))
    assert set(bodies) == {"divergence", "member_sums"}
    for name, loads in (("divergence", 16), ("member_sums", 12)):
        body = bodies[name]
        assert body.count("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32") == 32
        assert body.count("ld.shared.v4") >= loads
        assert not re.findall(r"\bld\.(?!shared|global|param|local|const)\S*", body) and "wmma" not in body

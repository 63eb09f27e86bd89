"""What several benchmarks share: the machine's description, memory, clocks, fresh processes and sample maps."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from runtime.errors import DiffSegError, UsageError
from runtime.terminal import check_extra, check_packages, errors_end_the_process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    Maps = NDArray[np.float32]

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "data" / "reference_0.npz"
GRID = 16  # anchors per axis, the paper's


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    import cv2
    import numpy as np

    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    blas = "unknown"
    try:
        from threadpoolctl import threadpool_info

        # OpenCV brings a BLAS of its own, which the merge does not use.
        pools = [
            pool
            for pool in threadpool_info()
            if pool.get("user_api") == "blas" and "numpy" in str(pool.get("filepath"))
        ]
        if pools:
            blas = " ".join(str(pools[0].get(key, "")) for key in ("internal_api", "version", "architecture"))
    except ImportError:
        pass
    return {
        "cpu": f"{model}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "blas": blas,
    }


def resident(field: str) -> float:
    """A field of Linux's /proc/self/status in MB, such as VmRSS (now) or VmHWM (the most so far).

    The most by `getrusage` would include the parent process.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The value of a call, and its seconds of processor time."""
    start = time.process_time()
    value = call()
    return value, time.process_time() - start


def say(text: str) -> None:
    """Report progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def in_fresh_process(
    function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None
) -> Any:
    """Call a function of a module in a process of its own, and return what it returns.

    Peak memory belongs to a process and is never given back. Arguments and the value travel as JSON.
    `environment`: variables to add to those of this process.
    Raises typer.Exit when the call fails, after the process has written the reason to stderr, and DiffSegError when
    the process was killed.
    """
    command = [sys.executable, "-c", "from tools.benchmark.common import _answer; _answer()"]
    question = json.dumps([function.__module__, function.__name__, arguments])
    done = subprocess.run(
        [*command, question],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode < 0:
        raise DiffSegError(
            f"{function.__name__}: expected its process to finish, found it killed by signal {-done.returncode}; "
            "signal 9 usually means that memory ran out: free some and run again"
        )
    if done.returncode:
        raise typer.Exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def _answer() -> None:
    """The other end of `in_fresh_process`."""
    module, name, arguments = json.loads(sys.argv[1])
    with errors_end_the_process():
        print(json.dumps(getattr(import_module(module), name)(*arguments)))


def check_options(model: str, family: str, plot: Path | None) -> None:
    """Refuse an unknown family, a plot that could not be written, and missing packages, before all the measuring.

    Raises UsageError and ModuleNotFoundError.
    """
    from tools.tiny.random_pipelines import FAMILIES

    if not model and family not in FAMILIES:
        raise UsageError(f"--family: expected one of {', '.join(FAMILIES)}, found {family}")
    check_extra("export")
    if plot:
        check_packages("matplotlib")
    if plot and (not plot.absolute().parent.is_dir() or plot.suffix.lower() != ".png"):
        raise UsageError(f"--plot: expected a .png in a folder that exists, found {plot}")


def core_pyramid(side: int) -> tuple[list[Maps], tuple[float, ...]]:
    """Attention maps like those of a network, and thresholds that give ten to twenty segments.

    At a side of 64 the features are those of a reference vector in a checkout. Otherwise they are drawn: a smooth
    picture of few colours, at four resolutions.
    Returns four arrays float32 [n, n], finest first, and one threshold per iteration.
    """
    import numpy as np

    features: list[NDArray[np.float64]]
    if side == 64 and REFERENCE.exists():
        with np.load(REFERENCE) as data:
            features = [data[name].astype(np.float64) for name in ("q64", "q32", "q16", "q8")]
            thresholds = tuple(float(threshold) for threshold in data["thresholds"])
    else:
        import cv2

        rng = np.random.default_rng(0)
        y, x = np.mgrid[:side, :side] / side
        seeds = rng.random((12, 2))
        region = np.argmin([(y - sy) ** 2 + (x - sx) ** 2 for sy, sx in seeds], axis=0)
        picture = 1.5 * rng.normal(size=(12, 6))[region] + 0.1 * rng.normal(size=(side, side, 6))
        features = []
        for level in (side, side // 2, side // 4, side // 8):
            small = cv2.resize(picture, (level, level), interpolation=cv2.INTER_AREA).reshape(level * level, 6)
            features.append(np.stack([small, 0.8 * small]))
        thresholds = (0.3, 0.3, 0.3)
    pyramid = []
    for heads in features:
        maps = np.zeros((heads.shape[1], heads.shape[1]))
        for head in heads:
            half = 0.5 * (head * head).sum(axis=1)
            weight = np.exp(head @ head.T - half[:, None] - half)
            maps += weight / weight.sum(axis=1, keepdims=True)
        pyramid.append((maps / len(heads)).astype(np.float32))
    return pyramid, thresholds

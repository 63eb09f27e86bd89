"""Which backend runs which engine file: a registry that is data, and opening an engine by it."""

import contextlib
import importlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.engine.base import Engine
from runtime.engine.spec import sidecar_path
from runtime.errors import DiffSegError

if TYPE_CHECKING:
    pass


EMBEDDED = Path(__file__).resolve().parents[2] / "engines" / "tiny.onnx"


@dataclass(frozen=True, slots=True)
class Backend:
    """How to get at a backend without importing it: module, class, what it needs, which files and options it takes."""

    name: str
    suffix: str
    module: str
    cls: str
    package: str
    extras: tuple[str, ...]
    options: tuple[str, ...] = ()


BACKENDS = (
    Backend(
        "onnxruntime",
        ".onnx",
        "runtime.engine.backends.onnxruntime",
        "OnnxRuntimeEngine",
        "onnxruntime",
        ("cpu", "gpu"),
        ("threads",),
    ),
    Backend(
        "openvino",
        ".onnx",
        "runtime.engine.backends.openvino",
        "OpenVinoEngine",
        "openvino",
        ("openvino",),
        ("threads", "streams", "precision", "cache"),
    ),
    # Which of the two built a plan stands in its sidecar.
    Backend("tensorrt", ".plan", "runtime.engine.backends.tensorrt", "TensorRtEngine", "tensorrt", ("tensorrt",)),
    Backend("tensorrt_rtx", ".plan", "runtime.engine.backends.tensorrt", "TensorRtEngine", "tensorrt_rtx", ("rtx",)),
)


def open_engine(
    path: str | Path | None = None, device: str = "auto", backend: str | None = None, **options: Any
) -> Engine:
    """Open an engine file; None opens the embedded default. `device`: auto, cpu, cuda or cuda:N.

    `backend`: one by its name; None = the first that is installed, and with the device auto OpenVINO on a CPU with
    bfloat16 units, where it is about twice as fast. `options`: the backend's own: threads (onnxruntime, openvino),
    streams, precision and cache (openvino); None leaves one out.
    Raises DiffSegError, before anything heavy is imported, when the file is missing, no backend runs its kind, the
    backend's package is not installed, or it has no such option.
    """
    try:
        path = EMBEDDED if path is None else Path(path).expanduser()
    except RuntimeError as error:
        raise DiffSegError(f"no engine {path} ({error})") from None
    check_device(device)
    options = {name: value for name, value in options.items() if value is not None}
    chosen = _choose(path, backend, device, options)
    if path.is_dir():
        raise DiffSegError(f"{path} is a folder; expected an engine file, such as {path}/NAME{chosen.suffix}")
    if not path.is_file():
        raise DiffSegError(
            f"no engine {path}; export one with 'python -m export MODEL --output {path.with_suffix('')}'"
        )
    if importlib.util.find_spec(chosen.package) is None:
        extras = " or ".join(f"pip install 'diffseg[{extra}]'" for extra in chosen.extras)
        raise DiffSegError(f"{path.name} needs the package {chosen.package}, which is not installed; {extras}")
    cls = getattr(importlib.import_module(chosen.module), chosen.cls)
    engine: Engine = cls(path, device, **options)
    engine.path, engine.asked = path, device
    return engine


def check_device(device: str) -> None:
    """Raise DiffSegError unless `device` is auto, cpu, cuda or cuda:N."""
    name, _, index = device.partition(":")
    if device not in ("auto", "cpu", "cuda") and not (name == "cuda" and index.isdecimal()):
        raise DiffSegError(f"unknown device {device!r}; expected auto, cpu, cuda or cuda:N")


def _choose(path: Path, name: str | None, device: str = "auto", options: Iterable[str] = ()) -> Backend:
    runs = [backend for backend in BACKENDS if backend.suffix == path.suffix.lower()]
    if not runs:
        raise DiffSegError(
            f"cannot run {path.name}: expected an engine that ends in {_names(b.suffix for b in BACKENDS)}; "
            "make one with 'python -m export MODEL --output engines/NAME'"
        )
    if runs[0].suffix == ".plan" and path.is_file():
        name = _flavour(path, name)
    if name not in (None, *(backend.name for backend in runs)):
        raise DiffSegError(f"no backend {name!r} for {path.suffix} engines; expected {_names(b.name for b in runs)}")
    able = [backend for backend in runs if name in (None, backend.name)]
    able = [backend for backend in able if set(options) <= set(backend.options)]
    if not able:
        known = "; ".join(f"{b.name} takes {', '.join(b.options) or 'none'}" for b in runs)
        raise DiffSegError(f"{_names(options)}: {name or path.suffix + ' engines'}: no such option; {known}")
    installed = {backend.name: backend for backend in able if importlib.util.find_spec(backend.package) is not None}
    if "openvino" in installed and (
        _is_bfloat16(path) or (path.is_file() and device == "auto" and _prefers_openvino())
    ):
        return installed["openvino"]
    return next(iter(installed.values()), able[0])


def _flavour(path: Path, name: str | None) -> str:
    """The backend that a plan was built with. Raises DiffSegError where its sidecar is bad or another is asked for."""
    from runtime.engine.plan import read_plan

    plan = read_plan(path)[1]
    if name not in (None, plan.flavour):
        raise DiffSegError(
            f"{path} was built with {plan.flavour} {plan.version}, which alone can run it; expected that backend, "
            f"found {name!r}; leave --backend out"
        )
    return plan.flavour


def _prefers_openvino() -> bool:
    """Whether OpenVINO is the fastest by what the machine can do: a CPU with bfloat16 units, and no CUDA to use."""
    from importlib.metadata import PackageNotFoundError, distribution

    with contextlib.suppress(PackageNotFoundError):
        distribution("onnxruntime-gpu")
        return False
    from runtime.engine.backends.openvino import has_bfloat16

    return has_bfloat16()


def _is_bfloat16(path: Path) -> bool:
    """Whether the sidecar says so; what is wrong with a sidecar comes out when the engine is opened."""
    try:
        return json.loads(sidecar_path(path).read_text(encoding="utf-8"))["precision"] == "bf16"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _names(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))

"""Which backend runs which engine file: a registry that is data, and `open_engine`, which reads it."""

import contextlib
import importlib
import importlib.util
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.engine.base import Engine, no_maps
from runtime.engine.external import check_external_data
from runtime.engine.heads import HEADS
from runtime.engine.plan import read_plan
from runtime.engine.spec import sidecar_path
from runtime.errors import DiffSegError
from runtime.files import read_small_text

EMBEDDED = Path(__file__).resolve().parents[2] / "engines" / "tiny.onnx"
EMBEDDED_NAME = EMBEDDED.stem


@dataclass(frozen=True, slots=True)
class Backend:
    """How to reach a backend without importing it. `README.md` beside this file says how to add one.

    Attributes:
        name: what `--backend` takes.
        suffix: of the engine files it runs, in lower case.
        module, cls: where its subclass of `Engine` is; called as `cls(path, device, **options)`.
        package: the inference library it imports.
        extras: extras of this project that install that package.
        options: names of the options it takes.
    """

    name: str
    suffix: str
    module: str
    cls: str
    package: str
    extras: tuple[str, ...]
    options: tuple[str, ...] = ()


BACKENDS: tuple[Backend, ...] = (
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
    # The sidecar of a plan names the one of the two that built it.
    Backend("tensorrt", ".plan", "runtime.engine.backends.tensorrt", "TensorRtEngine", "tensorrt", ("tensorrt",)),
    Backend("tensorrt_rtx", ".plan", "runtime.engine.backends.tensorrt", "TensorRtEngine", "tensorrt_rtx", ("rtx",)),
)


def open_engine(
    path: str | Path | None = None,
    device: str = "auto",
    backend: str | None = None,
    *,
    flip: bool = False,
    **options: Any,
) -> Engine:
    """Open an engine file; None or "tiny" opens the embedded engine. `device`: auto, cpu, cuda or cuda:N.

    `backend`: a backend by its name. None takes the first that is installed; with the device auto, OpenVINO on a CPU
    with bfloat16 units, where it is about twice as fast. `options`: the backend's own: threads (onnxruntime,
    openvino), streams, precision and cache (openvino); an option of None counts as left out. `flip`: the network also
    sees the frame's mirror image, left and right exchanged; its maps are mirrored back, and the mean of both is given.
    Raises DiffSegError, before anything heavy is imported, when the file is missing, when no backend runs its kind,
    when the backend's package is not installed, or when it has no such option; later, when `flip` finds no maps.
    """
    if not isinstance(flip, bool):
        raise DiffSegError(f"flip: expected True or False, found {flip!r}")
    path = engine_path(path)
    check_device(device)
    options = {name: value for name, value in options.items() if value is not None}
    chosen = _choose(path, backend, device, options)
    if path.is_dir():
        raise DiffSegError(f"{path} is a folder; expected an engine file, such as {path}/NAME{chosen.suffix}")
    if not path.is_file():
        raise DiffSegError(
            f"no engine {path}; check the path, or export one with 'python -m export MODEL --output "
            f"{path.with_suffix('')}'"
        )
    if importlib.util.find_spec(chosen.package) is None:
        extras = " or ".join(f"pip install 'diffseg[{extra}]'" for extra in chosen.extras)
        wanted = f" with {', '.join(options)}" if options else ""
        raise DiffSegError(f"{path.name}{wanted} needs the package {chosen.package}, which is not installed; {extras}")
    if chosen.suffix == ".onnx":
        check_external_data(path)
    cls = getattr(importlib.import_module(chosen.module), chosen.cls)
    engine: Engine = cls(path, device, **options)
    engine.path, engine.backend, engine.asked, engine.flips = path, chosen.name, device, flip
    if flip and HEADS[engine.spec.head].route != "maps":
        raise DiffSegError(f"flip: {no_maps(engine.spec)}")
    if flip:
        engine.on_device = False  # the mean is taken on the host
    return engine


def check_device(device: str) -> None:
    """Raise DiffSegError unless `device` is auto, cpu, cuda or cuda:N."""
    name, _, index = device.partition(":") if isinstance(device, str) else ("", "", "")
    if name not in ("auto", "cpu", "cuda") or (device != name and not (name == "cuda" and index.isdecimal())):
        raise DiffSegError(f"unknown device {device!r}; expected auto, cpu, cuda or cuda:N")


def engine_path(path: str | Path | None) -> Path:
    """The file to open. Raises DiffSegError when it is missing and only the embedded engine can be meant."""
    if path is None or str(path) == EMBEDDED_NAME:
        return EMBEDDED
    if not isinstance(path, (str, os.PathLike)):
        raise DiffSegError(f"engine: expected the path of an .onnx or a .plan, or None, found {path!r}")
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:
        raise DiffSegError(f"no engine {path} ({error})") from None
    if path.name in (EMBEDDED_NAME, EMBEDDED.name) and not path.exists():
        raise DiffSegError(
            f"no engine {path}; the engine {EMBEDDED_NAME} is embedded and needs no file: leave the engine out, or "
            f"give its name alone, {EMBEDDED_NAME} (--engine {EMBEDDED_NAME})"
        )
    return path


def _choose(path: Path, name: str | None, device: str = "auto", options: Iterable[str] = ()) -> Backend:
    """The backend for a file; `name`: the one asked for. Raises DiffSegError when none fits."""
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
    """The backend that built a plan. Raises DiffSegError when its sidecar is invalid or `name` is another backend."""
    plan = read_plan(path)[1]
    if name not in (None, plan.flavour):
        raise DiffSegError(
            f"{path} was built with {plan.flavour} {plan.version} and runs only with it; expected that backend, "
            f"found {name!r}; leave --backend out"
        )
    return plan.flavour


def _prefers_openvino() -> bool:
    """Whether OpenVINO is the fastest on this machine: a CPU with bfloat16 units, and no ONNX Runtime for CUDA."""
    from importlib.metadata import PackageNotFoundError, distribution

    with contextlib.suppress(PackageNotFoundError):
        distribution("onnxruntime-gpu")
        return False
    from runtime.engine.backends.openvino import has_bfloat16

    return has_bfloat16()


def _is_bfloat16(path: Path) -> bool:
    """Whether the sidecar says bf16. Opening the engine reports a sidecar that is invalid."""
    try:
        return bool(json.loads(read_small_text(sidecar_path(path)))["precision"] == "bf16")
    except (DiffSegError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _names(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))

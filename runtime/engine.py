"""Engines: files that map frames to attention or labels. A registry says which backend runs which file."""

import contextlib
import importlib
import importlib.util
import json
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError
from runtime.sidecar import EngineSpec, sidecar_path

if TYPE_CHECKING:
    import numpy as np

    from runtime.native.arrays import DeviceArray

EMBEDDED = Path(__file__).resolve().parent.parent / "engines" / "tiny.onnx"


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
        "runtime.backends.onnxruntime",
        "OnnxRuntimeEngine",
        "onnxruntime",
        ("cpu", "gpu"),
        ("threads",),
    ),
    Backend(
        "openvino",
        ".onnx",
        "runtime.backends.openvino",
        "OpenVinoEngine",
        "openvino",
        ("openvino",),
        ("threads", "streams", "precision", "cache"),
    ),
    # Which of the two built a plan stands in its sidecar.
    Backend("tensorrt", ".plan", "runtime.backends.tensorrt", "TensorRtEngine", "tensorrt", ("tensorrt",)),
    Backend("tensorrt_rtx", ".plan", "runtime.backends.tensorrt", "TensorRtEngine", "tensorrt_rtx", ("rtx",)),
)


class Engine(ABC):
    """A loaded engine. Backends implement `_infer` and `clone`; everything else is here.

    `device`: cpu or cuda:N. `path`: the file. `asked`: the device asked for, which may be auto. `on_device`: whether
    `infer_on_device` leaves the maps on a GPU.
    """

    spec: EngineSpec
    device: str
    path: Path
    asked: str
    on_device: bool = False

    def infer(self, frames: "np.ndarray", thresholds: Sequence[float] | None = None) -> list["np.ndarray"]:
        """Run frames uint8 [B, H, W, 3] BGR, of the engine's own size, through the network.

        Returns the head's outputs in the order of the spec: for `attention` one float [B, n, n] per level, finest
        first; for `labels` the labels [B, H, W], uint8 or int32, and the number of proposals int32 [B]. `thresholds`:
        for `labels` alone, one per iteration in the graph, None = the engine's own. Raises DiffSegError when the
        frames have another shape or type, the thresholds another number, or the library fails.
        """
        return self._infer(self._inputs(frames, thresholds))

    def _inputs(self, frames: "np.ndarray", thresholds: Sequence[float] | None) -> dict[str, "np.ndarray"]:
        """Inputs by name, once they are what the graph takes."""
        spec = self.spec
        expected = (spec.batch or len(frames), spec.height, spec.width, 3)
        if frames.dtype != "uint8" or frames.shape != expected:
            batch = "B" if spec.batch is None else str(spec.batch)
            raise DiffSegError(
                f"the engine takes frames uint8 [{batch}, {spec.height}, {spec.width}, 3], found {frames.dtype} "
                f"{list(frames.shape)}; resize the frame first, or let runtime.Segmenter do it"
            )
        inputs = {"frame": frames}
        if spec.head == "labels":
            inputs["thresholds"] = _thresholds(spec, thresholds)
        elif thresholds is not None:
            raise DiffSegError("an engine with the head attention takes no thresholds; the merge core does")
        return inputs

    def infer_on_device(self, frames: "np.ndarray") -> list["DeviceArray"]:
        """As `infer`, for an engine with the head attention on a GPU: the maps stay there, until the next call."""
        if not self.on_device or self.spec.head != "attention":
            raise DiffSegError(
                "infer_on_device: expected an engine with the head attention on a GPU, found the head "
                f"{self.spec.head} on {self.device}; use infer"
            )
        return self._infer_on_device(self._inputs(frames, None))

    def prefetch(self, frames: "np.ndarray") -> None:  # noqa: B027 - engines that have no use for it do nothing
        """Begin to bring frames to the GPU, from any thread, while the network may still work on others.

        A call with this very memory, unchanged, is to follow; where none does, nothing but time is lost.
        """

    def _infer_on_device(self, inputs: dict[str, "np.ndarray"]) -> list["DeviceArray"]:
        raise NotImplementedError

    @abstractmethod
    def _infer(self, inputs: dict[str, "np.ndarray"]) -> list["np.ndarray"]: ...

    @abstractmethod
    def clone(self) -> "Engine":
        """A second engine on the same weights, for use from another thread."""


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


def _thresholds(spec: EngineSpec, thresholds: Sequence[float] | None) -> "np.ndarray":
    import numpy as np

    values = np.array(spec.thresholds if thresholds is None else thresholds, np.float32)
    if values.shape != (len(spec.thresholds),) or not (np.isfinite(values) & (values > 0)).all():
        raise DiffSegError(
            f"thresholds: expected {len(spec.thresholds)} finite numbers above 0, one per iteration in the graph, "
            f"found {values.tolist()}; {rebuild_command(spec, '--threshold T,T,...')} changes how many"
        )
    return values


def rebuild_command(spec: EngineSpec, options: str) -> str:
    """The export that changes what is part of a labels engine's graph."""
    baked = {
        f"--size {spec.height}x{spec.width}": True,
        f"--batch {spec.batch or 'dynamic'}": spec.batch != 1,
        f"--precision {spec.precision}": spec.precision != "fp32",
        "--compact": spec.storage != spec.precision,
        f"--attention {','.join(spec.blocks)}": len(spec.blocks) < 3,
        f"--timestep {spec.timestep}": spec.timestep != 300,
        f"--prompt {shlex.quote(spec.prompt)}": spec.prompt != "",
        f"--noise-seed {spec.noise_seed}": spec.noise_seed is not None,
        f"--vae {spec.vae}": spec.vae is not None,
        f"--target {spec.target}": spec.target != "gpu",
    }
    kept = " ".join(option for option, differs in baked.items() if differs)
    return f"'python -m export {spec.source} --head labels {kept} {options} --output engines/NAME'"


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
    from runtime.plan import read_plan

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
    from runtime.backends.openvino import has_bfloat16

    return has_bfloat16()


def _is_bfloat16(path: Path) -> bool:
    """Whether the sidecar says so; what is wrong with a sidecar comes out when the engine is opened."""
    try:
        return json.loads(sidecar_path(path).read_text(encoding="utf-8"))["precision"] == "bf16"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _names(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))

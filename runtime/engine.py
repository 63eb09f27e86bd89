"""Engines: files that map frames to attention or labels. A registry says which backend runs which file."""

import importlib
import importlib.util
import json
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError
from runtime.sidecar import EngineSpec, sidecar_path

if TYPE_CHECKING:
    import numpy as np

EMBEDDED = Path(__file__).resolve().parent.parent / "engines" / "tiny.onnx"


@dataclass(frozen=True, slots=True)
class Backend:
    """How to get at a backend without importing it: module, class, what it needs, and which files it runs."""

    name: str
    suffix: str
    module: str
    cls: str
    package: str
    extras: tuple[str, ...]


BACKENDS = (
    Backend(
        "onnxruntime",
        ".onnx",
        "runtime.backends.onnxruntime",
        "OnnxRuntimeEngine",
        "onnxruntime",
        ("cpu", "gpu"),
    ),
    Backend("openvino", ".onnx", "runtime.backends.openvino", "OpenVinoEngine", "openvino", ("openvino",)),
)


class Engine(ABC):
    """A loaded engine. Backends implement `_infer` and `clone`; everything else is here."""

    spec: EngineSpec
    device: str

    def infer(self, frames: "np.ndarray", thresholds: Sequence[float] | None = None) -> list["np.ndarray"]:
        """Run frames uint8 [B, H, W, 3] BGR, of the engine's own size, through the network.

        Returns the head's outputs in the order of the spec: for `attention` one float [B, n, n] per level, finest
        first; for `labels` the labels [B, H, W], uint8 or int32, and the number of proposals int32 [B]. `thresholds`:
        for `labels` alone, one per iteration in the graph, None = the engine's own. Raises DiffSegError when the
        frames have another shape or type, the thresholds another number, or the library fails.
        """
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
        return self._infer(inputs)

    @abstractmethod
    def _infer(self, inputs: dict[str, "np.ndarray"]) -> list["np.ndarray"]: ...

    @abstractmethod
    def clone(self) -> "Engine":
        """A second engine on the same weights, for use from another thread."""


def open_engine(path: str | Path | None = None, device: str = "auto", backend: str | None = None) -> Engine:
    """Open an engine file; None opens the embedded default. `device`: auto, cpu, cuda or cuda:N.

    Raises DiffSegError, before anything heavy is imported, when the file is missing, no backend runs its kind, or
    the backend's package is not installed.
    """
    try:
        path = EMBEDDED if path is None else Path(path).expanduser()
    except RuntimeError as error:
        raise DiffSegError(f"no engine {path} ({error})") from None
    check_device(device)
    chosen = _choose(path, backend)
    if not path.is_file():
        raise DiffSegError(
            f"no engine {path}; export one with 'python -m export MODEL --output {path.with_suffix('')}'"
        )
    if importlib.util.find_spec(chosen.package) is None:
        extras = " or ".join(f"pip install 'diffseg[{extra}]'" for extra in chosen.extras)
        raise DiffSegError(f"{path.name} needs the package {chosen.package}, which is not installed; {extras}")
    cls = getattr(importlib.import_module(chosen.module), chosen.cls)
    return cls(path, device)


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
    }
    kept = " ".join(option for option, differs in baked.items() if differs)
    return f"'python -m export {spec.source} --head labels {kept} {options} --output engines/NAME'"


def _choose(path: Path, name: str | None) -> Backend:
    runs = [backend for backend in BACKENDS if backend.suffix == path.suffix.lower()]
    if not runs:
        raise DiffSegError(
            f"cannot run {path.name}: expected an engine that ends in {_names(b.suffix for b in BACKENDS)}; "
            "make one with 'python -m export MODEL --output engines/NAME'"
        )
    if name is None and _is_bfloat16(path) and importlib.util.find_spec("openvino"):
        name = "openvino"  # the only one that runs bfloat16 on a CPU
    for backend in runs:
        if name in (None, backend.name):
            return backend
    raise DiffSegError(f"no backend {name!r} for {path.suffix} engines; expected {_names(b.name for b in runs)}")


def _is_bfloat16(path: Path) -> bool:
    """Whether the sidecar says so; what is wrong with a sidecar comes out when the engine is opened."""
    try:
        return json.loads(sidecar_path(path).read_text(encoding="utf-8"))["precision"] == "bf16"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _names(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))

"""What building and running a plan share: TensorRT's module, its logger, and the tensors that a plan must have."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from runtime.engine.spec import EngineSpec


def import_flavour(flavour: str) -> Any:
    """The module tensorrt or tensorrt_rtx. Raises DiffSegError where it is installed, but its libraries are not."""
    try:
        return importlib.import_module(flavour)
    except (ImportError, OSError) as error:
        raise DiffSegError(
            f"the package {flavour} is installed and cannot be loaded ({str(error).strip()[:200]}); install it "
            f"again: pip install --force-reinstall {flavour.replace('_', '-')}"
        ) from None


def start(kind: Any, logger: Any, words: Sequence[str]) -> Any:
    """A builder or a runtime. Raises DiffSegError where TensorRT makes none, as with a driver that is too old."""
    try:
        return kind(logger)
    except TypeError:  # what its bindings make of nothing
        said = f" ({' '.join(words[-1].split())[:300]})" if words else ""
        raise DiffSegError(f"TensorRT does not start{said}; check the NVIDIA driver") from None


def make_logger(trt: Any, words: list[str]) -> Any:
    """A logger that keeps errors for our own messages, and prints nothing."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                words.append(message)

    return Logger()


def tensor_shapes(spec: EngineSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of inputs and outputs by name; -1 for a dynamic batch."""
    batch = -1 if spec.batch is None else spec.batch
    shapes: dict[str, tuple[int, ...]] = {"frame": (batch, spec.height, spec.width, 3)}
    if spec.head == "labels":
        frame = {"labels": (batch, spec.height, spec.width), "segments": (batch,)}
        return shapes | {"thresholds": (len(spec.thresholds),)} | frame
    sizes = {level.output: level.height * level.width for level in spec.levels}
    return shapes | {name: (batch, size, size) for name, size in sizes.items()}


def build_platform() -> str:
    """System and processor, as plans are bound to them: "linux x86_64"."""
    return f"{platform.system()} {platform.machine()}".lower()

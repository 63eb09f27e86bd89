"""Shared by building and running a plan: TensorRT's module, its logger, and the tensors that a plan must have."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runtime.engine.heads import HEADS, Shape
from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from runtime.engine.spec import EngineSpec


def import_flavour(flavour: str) -> Any:
    """The module tensorrt or tensorrt_rtx. Raises DiffSegError when it is installed without its libraries."""
    try:
        return importlib.import_module(flavour)
    except (ImportError, OSError) as error:
        raise DiffSegError(
            f"the package {flavour} is installed and cannot be loaded ({str(error).strip()[:200]}); install it "
            f"again: pip install --force-reinstall {flavour.replace('_', '-')}"
        ) from None


def start(kind: Any, logger: Any, words: Sequence[str]) -> Any:
    """A builder or a runtime. Raises DiffSegError when TensorRT gives none, as with a driver that is too old."""
    try:
        return kind(logger)
    except TypeError:  # its bindings turn a null pointer into this
        said = f" ({' '.join(words[-1].split())[:300]})" if words else ""
        raise DiffSegError(f"TensorRT does not start{said}; check the NVIDIA driver") from None


def make_logger(trt: Any, words: list[str]) -> Any:
    """A logger that appends errors to `words`, for our own messages, and prints nothing."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                words.append(message)

    return Logger()


def tensor_shapes(spec: EngineSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of inputs and outputs by name, as TensorRT gives them; -1 for a dynamic batch."""
    head = HEADS[spec.head]
    shapes: dict[str, Shape] = {"frame": spec.frame_input.shape(spec.batch, spec.height, spec.width)}
    shapes |= {each.name: (len(each.default(spec)),) for each in head.inputs}
    shapes |= head.outputs(spec)
    return {name: tuple(-1 if side is None else side for side in shape) for name, shape in shapes.items()}


def build_platform() -> str:
    """System and processor of this machine, "linux x86_64". A plan of TensorRT runs only on those it was built on."""
    return f"{platform.system()} {platform.machine()}".lower()

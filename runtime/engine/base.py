"""What every engine is: inputs checked once, and the two methods that a backend implements."""

import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engine.spec import EngineSpec
from runtime.errors import DiffSegError

if TYPE_CHECKING:
    import numpy as np

    from runtime.gpu.arrays import DeviceArray


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

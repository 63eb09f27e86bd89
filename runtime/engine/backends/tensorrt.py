"""Plans through TensorRT or TensorRT-RTX, whose Python interfaces are nearly the same, on an NVIDIA GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.engine.backends.tensorrt_library import build_platform, import_flavour
from runtime.engine.backends.tensorrt_plan import LoadedPlan
from runtime.engine.backends.tensorrt_runner import PlanRunner
from runtime.engine.base import Engine
from runtime.engine.plan import check_gpu, check_library, check_platform, read_plan
from runtime.errors import DiffSegError
from runtime.gpu import driver as cuda

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.gpu.arrays import DeviceArray


class TensorRtEngine(Engine):
    """A plan on a GPU. Clones share the weights; each has its own execution context and buffers.

    All work is queued on one stream, after an upload on another. Buffers are allocated once, for the largest batch.
    """

    on_device = True
    converts = True  # while frames are copied to where they are uploaded from, which may be ahead of the call

    def __init__(self, path: Path, device: str) -> None:
        """Load a plan. `device`: auto, cuda or cuda:N.

        Raises DiffSegError when the plan, its sidecar, the installed library and the GPU do not fit each other.
        """
        if device == "cpu":
            raise DiffSegError(
                f"{path} is a plan, which runs on an NVIDIA GPU; found device 'cpu'; use the .onnx engine"
            )
        self.spec, self.plan = read_plan(path)
        check_platform(path, self.plan, build_platform())
        trt = import_flavour(self.plan.flavour)
        check_library(path, self.plan, trt.__version__)
        try:
            card = cuda.gpu(int(device.partition(":")[2] or 0))
        except DiffSegError as error:
            found = str(error).rpartition("; ")[0]
            raise DiffSegError(f"{path}: {found}; a plan runs only on a GPU, the .onnx engine also on a CPU") from None
        check_gpu(path, self.plan, card.name, card.capability)
        self.device, self.path = f"cuda:{card.number}", path
        card.use()
        self._loaded = LoadedPlan(path, trt, self.spec, self.plan)
        self._runner = PlanRunner(self._loaded, self.spec, self.plan, card)

    def prefetch(self, frames: NDArray[np.uint8]) -> None:
        self._runner.prefetch(frames)

    def _infer(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return self._runner.to_host(self._run(inputs))

    def _infer_on_device(self, inputs: dict[str, NDArray[Any]]) -> list[DeviceArray]:
        found = self._run(inputs)
        self._runner.stream.wait()
        return found

    def _run(self, inputs: dict[str, NDArray[Any]]) -> list[DeviceArray]:
        try:
            return self._runner(inputs)
        except DiffSegError as error:
            raise DiffSegError(f"{self.path} failed: {error}{self._loaded.said()}") from None

    def clone(self) -> TensorRtEngine:
        other = object.__new__(TensorRtEngine)
        other.__dict__.update(self.__dict__)
        other._runner = PlanRunner(self._loaded, self.spec, self.plan, self._runner.card)
        return other

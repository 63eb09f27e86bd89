"""A plan in TensorRT's memory: deserialised once, its tensors checked, shared by clones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.engine.backends.tensorrt_library import make_logger, start, tensor_shapes
from runtime.engine.plan import FLAVOURS, check_content, rebuild
from runtime.engine.plan_info import PlanInfo
from runtime.engine.spec import EngineSpec
from runtime.errors import DiffSegError


class LoadedPlan:
    """A deserialised plan, which clones share. TensorRT's own messages go to `words`, newest last."""

    def __init__(self, path: Path, trt: Any, spec: EngineSpec, plan: PlanInfo) -> None:
        # Python drops attributes in the order of their assignment. A runtime must outlive its engine, and an engine
        # its contexts.
        self.engine: Any = None
        self.trt, self.path = trt, path
        self.words: list[str] = []
        self.logger = make_logger(trt, self.words)
        self.runtime = start(trt.Runtime, self.logger, self.words)
        if plan.version_compatible:
            self.runtime.engine_host_code_allowed = True  # the plan contains the runtime of its own version
        content = path.read_bytes()
        check_content(path, plan, content)
        self._check_validity(path, plan, content)
        self.engine = self.runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise DiffSegError(
                f"{FLAVOURS[plan.flavour]} {trt.__version__} cannot load {path}{self.said()}; build it again on this "
                f"machine with {rebuild(path, plan)}"
            )
        self.inputs, self.outputs = self._check_tensors(path, spec, plan)

    def said(self) -> str:
        """TensorRT's last message, in brackets; empty if there was none."""
        return f" ({' '.join(self.words[-1].split())[:300]})" if self.words else ""

    def _check_validity(self, path: Path, plan: PlanInfo, content: bytes) -> None:
        """Raise DiffSegError when TensorRT-RTX says that it cannot run the file here. TensorRT cannot be asked."""
        if not hasattr(self.runtime, "get_engine_validity"):
            return
        validity, diagnostics = self.runtime.get_engine_validity(content)
        if validity == self.trt.EngineValidity.INVALID:
            causes = self.trt.EngineInvalidityDiagnostics.__members__.items()
            named = ", ".join(name.lower().replace("_", " ") for name, bit in causes if diagnostics & int(bit))
            raise DiffSegError(
                f"{FLAVOURS[plan.flavour]} {plan.version} cannot run {path} here: {named or 'it gives no reason'}"
                f"{self.said()}; build it again on this machine with {rebuild(path, plan)}"
            )

    def _check_tensors(self, path: Path, spec: EngineSpec, plan: PlanInfo) -> tuple[list[str], list[str]]:
        """Names of inputs and outputs, in the spec's order. Raises DiffSegError when they differ from the spec's."""
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        entering = self.trt.TensorIOMode.INPUT
        inputs = [name for name in names if self.engine.get_tensor_mode(name) == entering]
        found = {name: tuple(self.engine.get_tensor_shape(name)) for name in names}
        expected = tensor_shapes(spec)
        if found != expected:
            raise DiffSegError(
                f"{path} has inputs and outputs {found}, its sidecar says {expected}; build it again with "
                f"{rebuild(path, plan)}"
            )
        return inputs, list(spec.outputs)

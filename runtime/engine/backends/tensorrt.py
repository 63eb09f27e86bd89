"""Plans through TensorRT or TensorRT-RTX, whose Python interfaces are nearly the same, on an NVIDIA GPU."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.engine.backends.tensorrt_library import build_platform, import_flavour, make_logger, start, tensor_shapes
from runtime.engine.base import Engine
from runtime.engine.plan import FLAVOURS, check_content, check_gpu, check_library, check_platform, read_plan, rebuild
from runtime.engine.spec import EngineSpec, PlanInfo
from runtime.errors import DiffSegError
from runtime.files import cache_folder, write_atomically
from runtime.gpu import driver as cuda
from runtime.gpu.arrays import DeviceArray

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLOTS = 4  # of uploads: one frame in the network, and before it those of a queue of two and of the thread that fills it


class TensorRtEngine(Engine):
    """A plan on a GPU. Clones share the weights and have an execution context and buffers each.

    Everything is queued on one stream, after an upload on another; buffers are allocated once, for the largest batch.
    """

    on_device = True

    def __init__(self, path: Path, device: str) -> None:
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
            raise DiffSegError(f"{path}: {found}; a plan runs there alone, the .onnx engine on a CPU too") from None
        check_gpu(path, self.plan, card.name, card.capability)
        self.device, self.path = f"cuda:{card.number}", path
        card.use()
        self._loaded = _Loaded(path, trt, self.spec, self.plan)
        self._runner = _Runner(self._loaded, self.spec, self.plan, card)

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
        other._runner = _Runner(self._loaded, self.spec, self.plan, self._runner.card)
        return other


class _Loaded:
    """A deserialised plan: what clones share. What TensorRT says goes to `words`, newest last."""

    def __init__(self, path: Path, trt: Any, spec: EngineSpec, plan: PlanInfo) -> None:
        # What is named first goes first with this object: a runtime must outlive its engine, and that its contexts.
        self.engine: Any = None
        self.trt, self.path = trt, path
        self.words: list[str] = []
        self.logger = make_logger(trt, self.words)
        self.runtime = start(trt.Runtime, self.logger, self.words)
        if plan.version_compatible:
            self.runtime.engine_host_code_allowed = True  # the plan brings the runtime of its own version along
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
        """TensorRT's last word, in brackets; empty if it said nothing."""
        return f" ({' '.join(self.words[-1].split())[:300]})" if self.words else ""

    def _check_validity(self, path: Path, plan: PlanInfo, content: bytes) -> None:
        """What TensorRT-RTX itself thinks of the file on this machine; TensorRT has no such question."""
        if not hasattr(self.runtime, "get_engine_validity"):
            return
        validity, diagnostics = self.runtime.get_engine_validity(content)
        if validity == self.trt.EngineValidity.INVALID:
            causes = self.trt.EngineInvalidityDiagnostics.__members__.items()
            named = ", ".join(name.lower().replace("_", " ") for name, bit in causes if diagnostics & int(bit))
            raise DiffSegError(
                f"{FLAVOURS[plan.flavour]} {plan.version} cannot run {path} here: {named or 'it says no more'}"
                f"{self.said()}; build it again on this machine with {rebuild(path, plan)}"
            )

    def _check_tensors(self, path: Path, spec: EngineSpec, plan: PlanInfo) -> tuple[list[str], list[str]]:
        """Names of inputs and outputs, in the spec's order. Raises DiffSegError where they are not the spec's."""
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        entering = self.trt.TensorIOMode.INPUT
        inputs = [name for name in names if self.engine.get_tensor_mode(name) == entering]
        found = {name: tuple(self.engine.get_tensor_shape(name)) for name in names}
        expected = tensor_shapes(spec)
        if found != expected:
            raise DiffSegError(
                f"{path} takes and gives {found}, its sidecar says {expected}; build it again with "
                f"{rebuild(path, plan)}"
            )
        return inputs, list(spec.outputs)


class _Runner:
    """An execution context with its stream and buffers: for one thread at a time."""

    def __init__(self, loaded: _Loaded, spec: EngineSpec, plan: PlanInfo, card: cuda.Gpu) -> None:
        # What is named first goes first with this object: the graph before the context, that before the engine.
        self.graph: cuda.Graph | None = None
        self.context: Any = None
        self.jit: _Jit | None = None
        card.use()  # a clone is made on the thread that will run it, and TensorRT takes the thread's GPU
        self.loaded, self.spec, self.card = loaded, spec, card
        engine, trt = loaded.engine, loaded.trt
        self.plan = plan
        self.batches = plan.batch or (spec.batch or 1,) * 3
        if plan.flavour == "tensorrt_rtx":
            self.jit = _Jit(loaded, spec, plan, card)
        self.context = engine.create_execution_context(*([self.jit.config] if self.jit else []))
        if self.context is None:
            raise DiffSegError(
                f"no memory on {card.name} to run the plan ({card.free() / 1e6:.0f} MB free){loaded.said()}; close "
                "what else uses it, or build for fewer frames per call or a smaller size"
            )
        self.stream, self.copies = cuda.Stream(card), cuda.Stream(card)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        self.buffers: dict[str, cuda.Buffer] = {}
        for name in (*loaded.inputs, *loaded.outputs):
            shape = tuple(engine.get_tensor_shape(name))
            self.shapes[name] = shape
            self.types[name] = str(np.dtype(trt.nptype(engine.get_tensor_dtype(name))))
            self.buffers[name] = cuda.Buffer(card, self._size(name, self.batches[2]))
            self.context.set_tensor_address(name, self.buffers[name].handle)
        size = self._size("frame", self.batches[2])
        self.slots = [_Slot(card, size) for _ in range(SLOTS)]
        self.uploads = threading.Lock()  # prefetch comes from another thread than the calls
        self.next = 0
        self.thresholds = cuda.Pinned(card, self._size("thresholds", 1)) if "thresholds" in self.shapes else None
        self.pinned: dict[str, cuda.Pinned] = {}
        self.batch: int | None = None
        # TensorRT-RTX captures by itself; a dynamic batch would need a graph for each.
        self.capturing = plan.flavour == "tensorrt" and spec.batch is not None

    def __call__(self, inputs: dict[str, NDArray[Any]]) -> list[DeviceArray]:
        """Queue one batch; outputs lie on the GPU until the next call, valid in `stream`."""
        frames = inputs["frame"]
        least, _, most = self.batches
        if not least <= len(frames) <= most:
            raise DiffSegError(
                f"the plan takes {least} to {most} frames per call, found {len(frames)}; build it again with "
                f"{rebuild(self.loaded.path, self._plan_for(len(frames)))}"
            )
        self.card.use()
        with self.uploads:
            slot = self._prefetched(frames) or self._upload(frames)
            slot.frames = None
            self.stream.after(slot.uploaded)
            self.stream.copy(self.buffers["frame"], slot.device, frames.nbytes)
            self.stream.mark(slot.read)
        if self.thresholds is not None:
            values = inputs["thresholds"]
            self.thresholds.array("float32", values.shape)[...] = values
            self.stream.upload(self.buffers["thresholds"], self.thresholds, values.nbytes)
        self._execute(len(frames))
        arrays = []
        for name in self.loaded.outputs:
            shape = self._shape(name, len(frames))
            pointer, kind = self.buffers[name].handle, self.types[name]
            arrays.append(DeviceArray(pointer, shape, kind, self.card.number, self, self.stream.handle))
        return arrays

    def prefetch(self, frames: NDArray[Any]) -> None:
        """Begin to copy frames to the GPU beside the network, from any thread; a call with them finds them there."""
        if len(frames) <= self.batches[2]:
            self.card.use()
            with self.uploads:
                if (older := self._prefetched(frames)) is not None:
                    older.frames = None  # the memory may have been written over since
                self._upload(frames).frames = frames

    def to_host(self, arrays: Sequence[DeviceArray]) -> list[NDArray[Any]]:
        """Copies of a call's outputs on the host, once the stream has reached them."""
        for name, array in zip(self.loaded.outputs, arrays, strict=True):
            if name not in self.pinned:
                self.pinned[name] = cuda.Pinned(self.card, self.buffers[name].size)
            size = math.prod(array.shape) * np.dtype(array.dtype).itemsize
            self.stream.download(self.pinned[name], self.buffers[name], size)
        self.stream.wait()
        return [
            self.pinned[name].array(array.dtype, array.shape).copy()
            for name, array in zip(self.loaded.outputs, arrays, strict=True)
        ]

    def _prefetched(self, frames: NDArray[Any]) -> _Slot | None:
        """The slot that holds these very frames: the same memory, read in the same way."""
        layout = frames.__array_interface__
        held = ((slot, slot.frames) for slot in self.slots)
        return next((slot for slot, kept in held if kept is not None and kept.__array_interface__ == layout), None)

    def _upload(self, frames: NDArray[Any]) -> _Slot:
        slot = self.slots[self.next]
        self.next = (self.next + 1) % SLOTS
        slot.frames = None
        slot.uploaded.wait()  # the host's copy may be written over
        slot.host.array("uint8", frames.shape)[...] = frames
        self.copies.after(slot.read)  # and the GPU's
        self.copies.upload(slot.device, slot.host, frames.nbytes)
        self.copies.mark(slot.uploaded)
        return slot

    def _execute(self, batch: int) -> None:
        if self.graph is not None:
            self.stream.launch(self.graph)
            return
        first = self.batch != batch
        if first and self.spec.batch is None:
            self.context.set_input_shape("frame", self._shape("frame", batch))
        self.batch = batch
        if not self.context.execute_async_v3(self.stream.handle):
            raise DiffSegError("TensorRT refused to run it")
        if first and self.jit is not None:
            self.stream.wait()
            self.jit.keep()
        if self.capturing:
            # Once only, and after a run as it is: TensorRT allocates and decides in its first.
            self.capturing = False
            self.stream.wait()
            self.stream.begin_capture()
            queued = self.context.execute_async_v3(self.stream.handle)
            # The head labels has loops whose length the host must read: then there is no graph, and none is needed.
            self.graph = self.stream.end_capture()
            if not queued:
                self.graph = None
            self.loaded.words.clear()

    def _plan_for(self, frames: int) -> PlanInfo:
        """The plan as it is to be asked for where so many frames are to fit."""
        least, best, most = self.batches
        return replace(self.plan, batch=(min(least, frames), best, max(most, frames)))

    def _shape(self, name: str, batch: int) -> tuple[int, ...]:
        return tuple(batch if side < 0 else side for side in self.shapes[name])

    def _size(self, name: str, batch: int) -> int:
        return math.prod(self._shape(name, batch)) * np.dtype(self.types[name]).itemsize


class _Slot:
    """A place for one upload: on the host, on the GPU, and the marks of both being done with."""

    def __init__(self, card: cuda.Gpu, size: int) -> None:
        self.frames: NDArray[Any] | None = None  # prefetched; held, so that no others take their memory's place
        self.host, self.device = cuda.Pinned(card, size), cuda.Buffer(card, size)
        self.uploaded, self.read = cuda.Event(card), cuda.Event(card)


class _Jit:
    """TensorRT-RTX compiles a plan's kernels for the GPU in its first run: they are kept in the user's cache."""

    def __init__(self, loaded: _Loaded, spec: EngineSpec, plan: PlanInfo, card: cuda.Gpu) -> None:
        self.config = loaded.engine.create_runtime_config()
        if spec.head == "attention":  # the loops of the head labels are not to be captured
            self.config.cuda_graph_strategy = loaded.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.path = cache_folder() / f"{plan.flavour}-{plan.version}-{plan.sha256[:16]}-{card.capability}.jit"
        self.cache = self.config.create_runtime_cache()
        self.kept = False
        with contextlib.suppress(OSError):
            self.kept = bool(self.cache.deserialize(self.path.read_bytes()))
        self.config.set_runtime_cache(self.cache)

    def keep(self) -> None:
        """Write what the first run compiled; a cache that cannot be written is no failure."""
        if not self.kept:
            with contextlib.suppress(OSError):
                write_atomically(self.path, bytes(self.cache.serialize()))
            self.kept = True

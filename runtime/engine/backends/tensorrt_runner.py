"""Running a plan: an execution context, its stream, its buffers and its uploads."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.engine.backends.tensorrt_plan import LoadedPlan
from runtime.engine.heads import HEADS
from runtime.engine.plan import rebuild
from runtime.engine.plan_info import PlanInfo
from runtime.engine.spec import EngineSpec
from runtime.errors import DiffSegError
from runtime.files import cache_folder, write_atomically
from runtime.gpu import driver as cuda
from runtime.gpu.arrays import DeviceArray

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLOTS = 4  # for uploads: one frame in the network, two in the queue before it, one in the thread that fills the queue


class PlanRunner:
    """An execution context with its stream and buffers. Used by one thread at a time."""

    def __init__(self, loaded: LoadedPlan, spec: EngineSpec, plan: PlanInfo, card: cuda.Gpu) -> None:
        # Python drops attributes in the order of their assignment: the graph before the context before the engine.
        self.graph: cuda.Graph | None = None
        self.context: Any = None
        self.jit: KernelCache | None = None
        card.use()  # TensorRT takes the GPU of the calling thread, and a clone is made on the thread that runs it
        self.loaded, self.spec, self.card = loaded, spec, card
        engine, trt = loaded.engine, loaded.trt
        self.plan = plan
        self.batches = plan.batch or (spec.batch or 1,) * 3
        if plan.flavour == "tensorrt_rtx":
            self.jit = KernelCache(loaded, spec, plan, card)
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
        self.values = {name: cuda.Pinned(card, self._size(name, 1)) for name in loaded.inputs if name != "frame"}
        self.pinned: dict[str, cuda.Pinned] = {}
        self.batch: int | None = None
        # TensorRT-RTX captures by itself; a dynamic batch would need one graph per size.
        self.capturing = plan.flavour == "tensorrt" and spec.batch is not None and HEADS[spec.head].capturable

    def __call__(self, inputs: dict[str, NDArray[Any]]) -> list[DeviceArray]:
        """Queue one batch. The outputs stay on the GPU until the next call; `stream` orders what reads them."""
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
            self.stream.copy(self.buffers["frame"], slot.device, self._size("frame", len(frames)))
            self.stream.mark(slot.read)
        for name, pinned in self.values.items():
            pinned.array("float32", inputs[name].shape)[...] = inputs[name]
            self.stream.upload(self.buffers[name], pinned, inputs[name].nbytes)
        self._execute(len(frames))
        arrays = []
        for name in self.loaded.outputs:
            shape = self._shape(name, len(frames))
            pointer, kind = self.buffers[name].handle, self.types[name]
            arrays.append(DeviceArray(pointer, shape, kind, self.card.number, self, self.stream.handle))
        return arrays

    def prefetch(self, frames: NDArray[Any]) -> None:
        """Start the upload of frames while the network runs, from any thread; the next call with them uses it."""
        if len(frames) <= self.batches[2]:
            self.card.use()
            with self.uploads:
                if (older := self._prefetched(frames)) is not None:
                    older.frames = None  # the memory may hold other frames by now
                self._upload(frames).frames = frames

    def to_host(self, arrays: Sequence[DeviceArray]) -> list[NDArray[Any]]:
        """Copies of a call's outputs on the host. Waits for the stream."""
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
        """The slot that holds these frames: the same memory, with the same strides."""
        layout = frames.__array_interface__
        held = ((slot, slot.frames) for slot in self.slots)
        return next((slot for slot, kept in held if kept is not None and kept.__array_interface__ == layout), None)

    def _upload(self, frames: NDArray[Any]) -> _Slot:
        slot = self.slots[self.next]
        self.next = (self.next + 1) % SLOTS
        slot.frames = None
        slot.uploaded.wait()  # then the copy on the host is free
        self.spec.frame_input.convert(frames, slot.host.array(self.types["frame"], self._shape("frame", len(frames))))
        self.copies.after(slot.read)  # then the copy on the GPU is free
        self.copies.upload(slot.device, slot.host, self._size("frame", len(frames)))
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
            raise DiffSegError("TensorRT did not start the run")
        if first and self.jit is not None:
            self.stream.wait()
            self.jit.keep()
        if self.capturing:
            # Only once, and after a run without capture: TensorRT allocates memory and chooses kernels in its first.
            self.capturing = False
            self.stream.wait()
            self.stream.begin_capture()
            queued = self.context.execute_async_v3(self.stream.handle)
            # Where a part of the network cannot be captured there is no graph, and every call executes.
            self.graph = self.stream.end_capture()
            if not queued:
                self.graph = None
            self.loaded.words.clear()

    def _plan_for(self, frames: int) -> PlanInfo:
        """The plan's description, changed so that a build by it takes this many frames."""
        least, best, most = self.batches
        return replace(self.plan, batch=(min(least, frames), best, max(most, frames)))

    def _shape(self, name: str, batch: int) -> tuple[int, ...]:
        return tuple(batch if side < 0 else side for side in self.shapes[name])

    def _size(self, name: str, batch: int) -> int:
        return math.prod(self._shape(name, batch)) * np.dtype(self.types[name]).itemsize


class _Slot:
    """Memory for one upload, on the host and on the GPU, and events that say when each is free again."""

    def __init__(self, card: cuda.Gpu, size: int) -> None:
        self.frames: NDArray[Any] | None = None  # prefetched; the reference keeps others from taking their memory
        self.host, self.device = cuda.Pinned(card, size), cuda.Buffer(card, size)
        self.uploaded, self.read = cuda.Event(card), cuda.Event(card)


class KernelCache:
    """Kernels that TensorRT-RTX compiles for the GPU in a plan's first run, kept in the user's cache."""

    def __init__(self, loaded: LoadedPlan, spec: EngineSpec, plan: PlanInfo, card: cuda.Gpu) -> None:
        self.config = loaded.engine.create_runtime_config()
        if HEADS[spec.head].capturable:
            self.config.cuda_graph_strategy = loaded.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.path = cache_folder() / f"{plan.flavour}-{plan.version}-{plan.sha256[:16]}-{card.capability}.jit"
        self.cache = self.config.create_runtime_cache()
        self.kept = False
        with contextlib.suppress(OSError):
            self.kept = bool(self.cache.deserialize(self.path.read_bytes()))
        self.config.set_runtime_cache(self.cache)

    def keep(self) -> None:
        """Write what the first run compiled. A cache that cannot be written is not an error."""
        if not self.kept:
            with contextlib.suppress(OSError):
                write_atomically(self.path, bytes(self.cache.serialize()))
            self.kept = True

"""The interface of every engine: it checks a call's inputs once; a backend implements two methods."""

import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engine.heads import HEADS, Input
from runtime.engine.inputs import DEFAULT_INPUT
from runtime.engine.spec import EngineSpec
from runtime.errors import DiffSegError

MOST_COUNTED = 4096  # threads or streams: inference libraries crash on absurd numbers
MOST_FRAMES = 8  # per run on a GPU, of an engine that takes any number

if TYPE_CHECKING:
    import numpy as np

    from runtime.gpu.arrays import DeviceArray


class Engine(ABC):
    """An open engine. Backends implement `_infer` and `clone`, and set `spec` and `device`.

    Attributes:
        spec: what the engine is.
        device: where it runs, "cpu" or "cuda:N".
        path: the engine file.
        backend: the name of the backend that runs it.
        asked: the device that the caller asked for; may be "auto".
        on_device: whether `infer_on_device` can leave outputs on a GPU.
        converts: whether `_infer` itself converts frames to the graph's input (`runtime.engine.inputs`).
        flips: whether maps are means of those of a frame and of its mirror image (`open_engine`).
    """

    spec: EngineSpec
    device: str
    path: Path
    backend: str = "of its own"
    asked: str
    on_device: bool = False
    converts: bool = False
    flips: bool = False

    @property
    def frames_at_once(self) -> int:
        """How many frames a run is best given: a fixed batch, or what fills a GPU."""
        return self.spec.batch or (1 if self.device == "cpu" else MOST_FRAMES)

    def infer(
        self, frames: "np.ndarray", thresholds: Sequence[float] | None = None, **inputs: Sequence[float] | None
    ) -> list["np.ndarray"]:
        """Run frames uint8 [B, H, W, 3] BGR, of the engine's own size, through the network.

        Returns the head's outputs in the order of the spec: for `attention` one float [B, n, n] per level, finest
        first; for `labels` the labels [B, H, W], uint8 or int32, and the number of proposals int32 [B]; for `features`
        one float [B, n, C]. If the engine has words, their maps float32 [B, words, h, w] follow, one per level.
        `thresholds`, `inputs`: the head's further inputs by name (`runtime.engine.heads`); None takes the engine's own
        values. The head `labels` takes `thresholds`, one per iteration in the graph.
        With `flips` the network runs twice, the second time on the frames' mirror images, whose maps are mirrored back.
        Raises DiffSegError when the frames have another shape or type, when the head takes no such input or another
        number of values, or when the library fails.
        """
        given = {"thresholds": thresholds, **inputs}
        found = self._infer(self._inputs(frames, given))
        if not self.flips:
            return found
        from runtime.pyramid.mirror import mirror_output

        images = self._infer(self._inputs(frames[:, :, ::-1].copy(), given))
        back = mirror_output(images, [(level.height, level.width) for level in self.spec.levels])
        # To the last bit the mirror image of what the frames' mirror images give: halves and sums of two are exact.
        return [(own + other) * own.dtype.type(0.5) for own, other in zip(found, back, strict=True)]

    def infer_on_device(self, frames: "np.ndarray") -> list["DeviceArray"]:
        """Run as `infer` does, but leave the outputs on the GPU. They are valid until the next call.

        Raises DiffSegError when the engine runs on the CPU, or its head's outputs are of no use there.
        """
        if not self.on_device or not HEADS[self.spec.head].on_device:
            able = " or ".join(head.name for head in HEADS.values() if head.on_device)
            raise DiffSegError(
                f"infer_on_device: expected an engine with the head {able} on a GPU, found the head "
                f"{self.spec.head} on {self.device}; use infer"
            )
        return self._infer_on_device(self._inputs(frames, {}))

    def prefetch(self, frames: "np.ndarray") -> None:  # noqa: B027 - most engines have no use for it
        """Start the upload of frames to the GPU, from any thread, while the network may still run on other frames.

        The next call with the same array, unchanged, finds its frames there. Without such a call only time is lost.
        """

    def _inputs(self, frames: "np.ndarray", given: dict[str, Sequence[float] | None]) -> dict[str, "np.ndarray"]:
        """The graph's inputs by name. Raises DiffSegError when one is not what `infer` takes."""
        spec = self.spec
        expected = (spec.batch or len(frames), spec.height, spec.width, 3)
        if frames.dtype != "uint8" or frames.shape != expected:
            batch = "B" if spec.batch is None else str(spec.batch)
            raise DiffSegError(
                f"the engine takes frames uint8 [{batch}, {spec.height}, {spec.width}, 3], found {frames.dtype} "
                f"{list(frames.shape)}; resize the frame first, or let runtime.Segmenter do it"
            )
        inputs = HEADS[spec.head].inputs
        unknown = [
            name for name, values in given.items() if values is not None and name not in {each.name for each in inputs}
        ]
        if unknown:
            takers = " or ".join(head.name for head in HEADS.values() if unknown[0] in {i.name for i in head.inputs})
            remedy = f"only {takers} does; leave them out" if takers else "leave them out"
            raise DiffSegError(f"an engine with the head {spec.head} takes no {unknown[0]}; {remedy}")
        fed = frames if self.converts else spec.frame_input.convert(frames)
        return {"frame": fed} | {each.name: _values(spec, each, given.get(each.name)) for each in inputs}

    def _infer_on_device(self, inputs: dict[str, "np.ndarray"]) -> list["DeviceArray"]:
        raise NotImplementedError

    @abstractmethod
    def _infer(self, inputs: dict[str, "np.ndarray"]) -> list["np.ndarray"]: ...

    @abstractmethod
    def clone(self) -> "Engine":
        """A second engine on the same weights, for use from another thread."""


def _values(spec: EngineSpec, expected: Input, given: Sequence[float] | None) -> "np.ndarray":
    """One further input as float32 [n]. Raises DiffSegError when it has another length or an invalid number."""
    import numpy as np

    default = expected.default(spec)
    values = np.array(default if given is None else given, np.float32)
    if values.shape != (len(default),) or not (np.isfinite(values) & (values > 0)).all():
        raise DiffSegError(
            f"{expected.name}: expected {len(default)} finite numbers above 0, {expected.each}, "
            f"found {values.tolist()}; {rebuild_command(spec, expected.option)} changes how many"
        )
    return values


def rebuild_command(spec: EngineSpec, options: str) -> str:
    """The `python -m export` command that makes this engine again with other `options`, in quotes for a message."""
    differs_from_default = {
        f"--size {spec.height}x{spec.width}": True,
        f"--input {spec.input}": spec.input != DEFAULT_INPUT.name,
        f"--batch {spec.batch or 'dynamic'}": spec.batch != 1,
        f"--precision {spec.precision}": spec.precision != "fp32",
        "--compact": spec.storage != spec.precision,
        f"--attention {','.join(spec.blocks)}": len(spec.blocks) < 3,
        f"--timestep {spec.timestep}": spec.timestep != 300,
        f"--prompt {shlex.quote(spec.prompt)}": spec.prompt != "",
        f"--noise-seed {spec.noise_seed}": spec.noise_seed is not None,
        f"--vae {spec.vae}": spec.vae is not None,
        f"--target {spec.target}": spec.target != "gpu",
        f"--solver {spec.solver}": spec.solver != "merge",
        "--auto": spec.auto and spec.head == "attention",
        f"--words {shlex.quote(','.join(spec.words))}": bool(spec.words),
    }
    kept = " ".join(option for option, differs in differs_from_default.items() if differs)
    return f"'python -m export {_model(spec)} --head {spec.head} {kept} {options} --output engines/NAME'"


def _model(spec: EngineSpec) -> str:
    """What `python -m export` made an engine of; the model of tiny is not shipped."""
    return "MODEL" if spec.source == "tiny" else spec.source


def no_maps(spec: EngineSpec) -> str:
    """What a message says of an engine without maps where one with them was expected."""
    return (
        f"an engine with the head {spec.head} gives no maps; expected the head attention, found {spec.head}; "
        f"'python -m export {_model(spec)} --head attention --output engines/NAME' makes one"
    )


def no_words(spec: EngineSpec) -> str:
    """What a message says of an engine without words where one with them was expected."""
    return (
        "expected an engine with words, found one without; "
        "'python -m export MODEL --words sky,tree --output engines/NAME' makes one"
    )


def check_count(name: str, value: object) -> None:
    """Raise DiffSegError unless an option of a backend is a whole number from 1 to MOST_COUNTED."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_COUNTED:
        raise DiffSegError(
            f"{name}: expected a whole number from 1 to {MOST_COUNTED}, found {value!r}; leave it out for the best"
        )

"""The heads an engine may have: what the graph takes and gives. A registry that is data.

A head is chosen at export. `README.md` beside this file says how to add one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Shape = tuple[int | None, ...]  # None: a batch of any size


class Map(Protocol):
    """One level of the pyramid, as `runtime.engine.spec.Level` describes it."""

    @property
    def output(self) -> str: ...
    @property
    def word_output(self) -> str: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


class Described(Protocol):
    """The fields of `runtime.engine.spec.EngineSpec` that a head may depend on."""

    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def batch(self) -> int | None: ...
    @property
    def levels(self) -> Sequence[Map]: ...
    @property
    def thresholds(self) -> tuple[float, ...]: ...
    @property
    def channels(self) -> int | None: ...
    @property
    def words(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Input:
    """An input of the graph in addition to the frame: float32 [n], finite numbers above 0.

    `default`: the numbers that a call leaves out; there are always n of them. `each`: what one number belongs to, for
    messages. `option`: the option of `python -m export` that changes n.
    """

    name: str
    default: Callable[[Described], tuple[float, ...]]
    each: str
    option: str


@dataclass(frozen=True, slots=True)
class Head:
    """One head.

    Attributes:
        name: in the sidecar, and of `python -m export --head`.
        route: the family of routes that turns its outputs into labels: "maps" (the merge core runs outside the graph),
            "labels" (the graph gives labels) or "features" (they are cut outside the graph).
        outputs: name → shape of the graph's outputs, in order, for a described engine.
        inputs: what the graph takes in addition to the frame.
        on_device: whether the outputs are of use where they are on a GPU (`Engine.infer_on_device`).
        capturable: whether a CUDA graph may record a run. Loops whose length the host must read forbid it.
        needs: fields of the description that may be None for other heads.
    """

    name: str
    route: str
    outputs: Callable[[Described], dict[str, Shape]]
    inputs: tuple[Input, ...] = ()
    on_device: bool = True
    capturable: bool = True
    needs: tuple[str, ...] = ()


def _map_outputs(spec: Described) -> dict[str, Shape]:
    """One attention map [B, h·w, h·w] per level, finest first; and the words' maps."""
    sizes = {level.output: level.height * level.width for level in spec.levels}
    maps: dict[str, Shape] = {name: (spec.batch, size, size) for name, size in sizes.items()}
    return maps | _word_outputs(spec)


def _label_outputs(spec: Described) -> dict[str, Shape]:
    """The labels [B, H, W] and the number of proposals [B]; and the words' maps."""
    return {"labels": (spec.batch, spec.height, spec.width), "segments": (spec.batch,)} | _word_outputs(spec)


def _word_outputs(spec: Described) -> dict[str, Shape]:
    """For an engine with words, their maps [B, words, h, w] per level, finest first."""
    if not spec.words:
        return {}
    return {level.word_output: (spec.batch, len(spec.words), level.height, level.width) for level in spec.levels}


def _feature_outputs(spec: Described) -> dict[str, Shape]:
    """The features [B, h·w, C]."""
    return {"features": (spec.batch, spec.levels[0].height * spec.levels[0].width, spec.channels)}


_THRESHOLDS = Input("thresholds", lambda spec: spec.thresholds, "one per iteration in the graph", "--threshold T,T,...")

HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        Head("attention", "maps", _map_outputs),
        Head("labels", "labels", _label_outputs, (_THRESHOLDS,), on_device=False, capturable=False),
        Head("features", "features", _feature_outputs, on_device=False, needs=("channels",)),
    )
}

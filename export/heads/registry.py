"""The heads that can be exported, as data, and what the module of a head must define.

What an engine with a head takes and gives is said by the head's entry in `runtime.engine.heads`.
"""

import importlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from runtime.engine import heads as runtime_heads
from runtime.errors import DiffSegError
from runtime.merge.registry import SOLVERS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from export.check.maps import Check, Reference
    from runtime.engine.base import Engine
    from runtime.engine.spec import EngineSpec


@dataclass(frozen=True, slots=True)
class HeadGraph:
    """One kind of engine.

    `name`: of the option `--head` and of the field in the sidecar. `gives`: what the engine's output is, for `--help`.
    `module`: path of the module that defines what `HeadModule` lists. `refused`: options of the export, named like the
    fields of `ExportRequest`, that this head cannot use, each with the reason. `reads`: what it takes of the network,
    "maps" or "features". `timestep`, `noise_seed`: of the U-Net's pass, where the request names none. `solvers`: those
    that turn what it gives into labels, its default first; entries of `runtime.merge.registry`.
    """

    name: str
    gives: str
    module: str
    refused: Mapping[str, str] = field(default_factory=dict)
    reads: str = "maps"
    timestep: int = 300
    noise_seed: int | None = None
    solvers: tuple[str, ...] = tuple(solver.name for solver in SOLVERS)


HEADS: tuple[HeadGraph, ...] = (
    HeadGraph("attention", "attention maps; the merge runs outside", "export.heads.attention"),
    HeadGraph(
        "labels",
        "labels, with all of DiffSeg in the graph",
        "export.heads.labels",
        {"auto": "thresholds of a graph are numbers"},
        solvers=("merge", "kcut"),
    ),
    HeadGraph(
        "features",
        "features for the solver ncut",
        "export.heads.features",
        dict.fromkeys(("blocks", "thresholds", "auto", "grid", "weights"), "features are cut, and no maps are merged")
        | {"words": "it gives no maps"},
        reads="features",
        timestep=50,
        noise_seed=0,
        solvers=("ncut",),
    ),
)
SPELLED = {"blocks": "attention", "thresholds": "threshold"}  # fields whose options have other names


class HeadModule(Protocol):
    """What the module of a head defines."""

    def assemble(self, network: "nn.Module", spec: "EngineSpec") -> "nn.Module":
        """The module that is traced.

        `network`: frames, as `spec.frame_input` says → attention maps float32 [B, n, n], finest first; or features
        float32 [B, n, C], if the head reads these. The result takes the frames and the inputs that the runtime's
        registry adds to them. It gives the outputs that `spec` names, and may give the maps after them.
        """
        ...

    def compare(self, path: Path, start: "Callable[[Path], Engine]", reference: "Reference") -> "list[Check]":
        """Compare the engine file `path` with PyTorch. `start`: opens an engine file on the CPU.

        Raises DiffSegError when the engine fails or gives other shapes than PyTorch.
        """
        ...


def find_head(name: str) -> HeadGraph:
    """The registry's entry. Raises DiffSegError, with the known names, when there is none."""
    for head in HEADS:
        if head.name == name:
            return head
    raise DiffSegError(f"--head: expected {', '.join(head.name for head in HEADS)}, found {name!r}")


def load_head(name: str) -> HeadModule:
    """Import the module of a head. Raises DiffSegError when there is no head of this name."""
    return cast(HeadModule, importlib.import_module(find_head(name).module))


def extra_inputs(spec: "EngineSpec") -> "dict[str, NDArray[np.float32]]":
    """The graph's inputs after the frame, by name, with the values that the engine has as defaults."""
    import numpy as np

    return {each.name: np.array(each.default(spec), np.float32) for each in runtime_heads.HEADS[spec.head].inputs}


def refuse_options(head: HeadGraph, given: Collection[str], solver: str | None = None) -> None:
    """Raise DiffSegError when one of the options `given`, fields of `ExportRequest`, or `solver` does not fit."""
    for option, reason in head.refused.items():
        if option in given:
            spelled = SPELLED.get(option, option).replace("_", "-")
            raise DiffSegError(
                f"--{spelled} does not go with --head {head.name}: {reason}; leave it out, or choose another head"
            )
    if solver is not None and solver not in head.solvers:
        raise DiffSegError(
            f"--solver: expected {' or '.join(head.solvers)} with --head {head.name}, found {solver!r}; leave "
            "it out, or choose another head"
        )

"""The solvers: how aggregated attention becomes proposals. A registry that is data.

A new solver is one entry here and one module; the README beside this file says how.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.pyramid.config import MergeConfig

    Given: TypeAlias = NDArray[np.float32] | tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Solver:
    """One solver.

    Attributes:
        name: how `MergeConfig.solver` names it.
        module: where its function is.
        function: its name; takes what `runtime.merge.solvers.merge.solve` takes, and gives what that gives.
        help: what it does, for `--help`.
        packages: Python packages it imports beyond those that the runtime always has, as `import` names them.
        reads: what it reads of `MergeConfig` that not every solver does.
    """

    name: str
    module: str
    help: str
    function: str = "solve"
    packages: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    def load(self) -> Callable[..., Given]:
        """Import the module and return the function."""
        function: Callable[..., Given] = getattr(importlib.import_module(self.module), self.function)
        return function


DEFAULT = "merge"  # the paper's, and the only one of the GPU's core and of engines that give labels
SOLVERS = (
    Solver(DEFAULT, "runtime.merge.solvers.merge", "the iterative merge"),
    Solver("kmeans", "runtime.merge.solvers.kmeans", "K-means on the maps, begun from the merge's proposals"),
    Solver(
        "ncut",
        "runtime.merge.solvers.ncut",
        "recursive normalised cut",
        packages=("scipy",),
        reads=("tau", "alpha"),
    ),
    Solver(
        "kcut", "runtime.merge.solvers.kcut", "K-way normalised cut, begun from the merge's proposals", reads=("alpha",)
    ),
)
OPTIONAL = ("tau", "alpha")  # fields of MergeConfig that only some solvers read


def solver_of(config: MergeConfig) -> Solver:
    """The entry of the solver that a config names.

    Raises ValueError where no entry has this name, a package it needs is not installed, or it does not read a number
    that the config gives.
    """
    entry = next((solver for solver in SOLVERS if solver.name == config.solver), None)
    if entry is None:
        *others, last = [repr(solver.name) for solver in SOLVERS]
        raise ValueError(f"solver: expected {', '.join(others)} or {last}, found {config.solver!r}; choose one of them")
    for package in entry.packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"solver: {entry.name!r} needs the package {package}, which is not installed; install it, or use "
                f"solver={DEFAULT!r}"
            )
    for name in OPTIONAL:
        if getattr(config, name) is not None and name not in entry.reads:
            readers = " and ".join(solver.name for solver in SOLVERS if name in solver.reads)
            raise ValueError(
                f"{name}: belongs to {readers}, found the solver {entry.name!r}; choose one of them, or leave it out"
            )
    return entry

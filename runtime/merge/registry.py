"""The solvers: how aggregated attention becomes proposals. A registry that is data.

A new solver is one entry here and one module; the README beside this file says how.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Solver:
    """One solver.

    Attributes:
        name: how `MergeConfig.solver` names it.
        module: where its function is.
        function: its name; takes what `runtime.merge.solvers.merge.solve` takes, and gives what that gives.
        help: what it does, for `--help`.
        packages: Python packages it imports beyond those that the runtime always has, as `import` names them.
    """

    name: str
    module: str
    help: str
    function: str = "solve"
    packages: tuple[str, ...] = ()

    def load(self) -> Callable[..., NDArray[np.float32]]:
        """Import the module and return the function."""
        function: Callable[..., NDArray[np.float32]] = getattr(importlib.import_module(self.module), self.function)
        return function


DEFAULT = "merge"  # the paper's, and the only one of the GPU's core and of engines that give labels
SOLVERS = (
    Solver(DEFAULT, "runtime.merge.solvers.merge", "the iterative merge"),
    Solver("kmeans", "runtime.merge.solvers.kmeans", "K-means on the maps, begun from the merge's proposals"),
)


def solver_named(name: str) -> Solver:
    """The entry of a solver. Raises ValueError where no entry has this name, or a package it needs is not installed."""
    for solver in SOLVERS:
        if solver.name == name:
            for package in solver.packages:
                if importlib.util.find_spec(package) is None:
                    raise ValueError(
                        f"solver: {name!r} needs the package {package}, which is not installed; install it, or use "
                        f"solver={DEFAULT!r}"
                    )
            return solver
    *others, last = [repr(solver.name) for solver in SOLVERS]
    raise ValueError(f"solver: expected {', '.join(others)} or {last}, found {name!r}; choose one of them")

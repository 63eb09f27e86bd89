"""The solvers: how aggregated attention becomes proposals. A registry that is data.

A new solver is one entry here and one module in `runtime/merge/solvers/`; the README of `runtime/merge` says how.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Solver:
    """One solver.

    Attributes:
        name: how `MergeConfig.solver` names it.
        module: its module's name in `runtime/merge/solvers/`.
        function: the function of that module that runs.
        help: what it does, for `--help`.
        packages: Python packages it imports beyond those that the runtime always has, as `import` names them.
        reads: what it reads of `MergeConfig` that not every solver does: "tau", "alpha".
    """

    name: str
    module: str
    help: str
    function: str = "solve"
    packages: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


DEFAULT = "merge"  # the paper's, and the only one of the GPU's core and of engines that give labels
SOLVERS = (
    Solver(DEFAULT, "merge", "the iterative merge"),
    Solver("kmeans", "kmeans", "K-means on the maps, begun from the merge's proposals"),
    Solver("ncut", "ncut", "recursive normalised cut", packages=("scipy",), reads=("tau", "alpha")),
    Solver("kcut", "kcut", "K-way normalised cut, begun from the merge's proposals", reads=("alpha",)),
)


def solver_named(name: object) -> Solver:
    """The entry of a solver. Raises ValueError where no entry has this name."""
    for solver in SOLVERS:
        if solver.name == name:
            return solver
    *others, last = [repr(solver.name) for solver in SOLVERS]
    raise ValueError(f"solver: expected {', '.join(others)} or {last}, found {name!r}; choose one of them")

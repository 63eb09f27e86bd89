"""Which refinements there are: a registry that is data, in the order in which they are applied."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_PIECES = "unlike"  # what becomes of the pieces of photographs' segments: see `refinement.Refinement.split`


@dataclass(frozen=True, slots=True)
class Step:
    """One refinement of labels.

    Attributes:
        name: the word of `--refine` that asks for it.
        module: where its function is.
        function: takes the labels, int32 [H, W], and then `inputs`; gives labels of the same shape, no new ones.
        inputs: what else it takes, of "frame" (uint8 [H, W, 3] BGR), "tokens" (the (h, w) of the tokens) and "min_area"
            (pixels).
        specks: share of a token's area; smaller regions that it leaves are absorbed.
        help: what it does, for `--help`.
        by_area: whether `--min-area` asks for it, and no word of `--refine`.
    """

    name: str
    module: str
    function: str
    inputs: tuple[str, ...] = ("frame", "tokens")
    specks: float = 0.0
    help: str = ""
    by_area: bool = False

    def load(self) -> Callable[..., NDArray[np.int32]]:
        """Import the module and return the function."""
        function: Callable[..., NDArray[np.int32]] = getattr(importlib.import_module(self.module), self.function)
        return function


REFINEMENTS = (
    # In texture a border frays into specks of some pixels, far below what attention resolves.
    Step("snap", "runtime.refine.snap", "snap", specks=0.25, help="borders follow the image's edges"),
    Step("pamr", "runtime.refine.pamr", "pamr", inputs=("frame",), help="pixel-adaptive mask refinement, slow"),
    Step("absorb", "runtime.refine.absorb", "absorb", inputs=("min_area",), by_area=True),
)


def refinement_names() -> tuple[str, ...]:
    """The words that `--refine` knows and that are refinements."""
    return tuple(step.name for step in REFINEMENTS if not step.by_area)

"""The head `attention`: the network's maps are the outputs, and the merge runs outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.check.labels import compare_labels, core_labels
from export.check.maps import compare_maps

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from export.check.maps import Check, Reference
    from runtime.engine.base import Engine
    from runtime.engine.spec import EngineSpec


def assemble(network: nn.Module, spec: EngineSpec) -> nn.Module:
    """The network itself."""
    return network


def compare(path: Path, start: Callable[[Path], Engine], reference: Reference) -> list[Check]:
    """The maps, those of words too, and the labels that the merge core makes of the maps."""
    from export.check.words import compare_words

    engine = start(path)
    found = engine.infer(reference.frames)
    maps, words = found[: len(engine.spec.levels)], found[len(engine.spec.levels) :]
    checks = compare_maps(engine.spec, maps, reference) + compare_words(engine.spec, words, reference)
    if not all(check.finite for check in checks):
        return [*checks]  # maps that are not finite have no labels
    labels = compare_labels(engine.spec, lambda threshold: core_labels(engine.spec, maps, threshold), reference)
    return [*checks, labels]

"""The head `features`: what the deepest self-attention on the way down gives; the runtime cuts it (solver ncut)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.check.features import compare_features

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
    """The features."""
    engine = start(path)
    return [*compare_features(engine.spec, engine.infer(reference.frames), reference)]

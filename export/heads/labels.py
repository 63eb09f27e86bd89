"""The head `labels`: all of DiffSeg is in the graph, so that any ONNX or TensorRT host gets labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.check.labels import compare_labels
from export.check.maps import compare_maps

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from export.check.maps import Check, Reference
    from runtime.engine.base import Engine
    from runtime.engine.spec import EngineSpec


def assemble(network: nn.Module, spec: EngineSpec) -> nn.Module:
    """The network followed by the merge; grid, weights, solver and the number of thresholds are those of `spec`."""
    from export.graph.labels import FrameToLabels, LabelsHead

    size = (spec.height, spec.width)
    return FrameToLabels(network, LabelsHead(spec.levels, size, spec.grid, spec.weights, spec.solver))


def compare(path: Path, start: Callable[[Path], Engine], reference: Reference) -> list[Check]:
    """The maps inside the graph, the words' maps, and the labels.

    The labels alone would hide many faults: different maps often give the same labels.
    """
    from export.check.words import compare_words
    from export.graph.onnx_file import attention_part

    engine = start(path)
    spec = engine.spec
    words = engine.infer(reference.frames)[2:] if spec.words else []
    with attention_part(path, spec) as part:
        checks = compare_maps(spec, start(part).infer(reference.frames), reference)
    checks += compare_words(spec, words, reference)
    if not all(check.finite for check in checks):
        return [*checks]  # maps that are not finite have no labels

    def labels(threshold: float) -> NDArray[Any]:
        return engine.infer(reference.frames, (threshold,) * len(spec.thresholds))[0]

    return [*checks, compare_labels(spec, labels, reference)]

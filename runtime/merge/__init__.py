"""DiffSeg's merge: from a pyramid of attention maps to proposals and labels."""

from typing import TYPE_CHECKING, Any

__all__ = ["MergeConfig", "aggregate_attention", "normalized_cut", "segment_attention"]

if TYPE_CHECKING:
    from runtime.merge.aggregate import aggregate_attention
    from runtime.merge.segment import segment_attention
    from runtime.merge.solvers.ncut import normalized_cut
    from runtime.pyramid.config import MergeConfig

_HOME = {
    "MergeConfig": "runtime.pyramid.config",
    "aggregate_attention": "runtime.merge.aggregate",
    "normalized_cut": "runtime.merge.solvers.ncut",
    "segment_attention": "runtime.merge.segment",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `--help`, which lists the solvers, costs no NumPy or OpenCV.
    if name not in _HOME:
        raise AttributeError(f"module 'runtime.merge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)

"""DiffSeg's merge: from a pyramid of attention maps to proposals and labels."""

from runtime.merge.aggregate import aggregate_attention
from runtime.merge.segment import segment_attention
from runtime.merge.solvers.ncut import normalized_cut
from runtime.pyramid.config import MergeConfig

__all__ = ["MergeConfig", "aggregate_attention", "normalized_cut", "segment_attention"]

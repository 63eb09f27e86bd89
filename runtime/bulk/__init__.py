"""Data sets of many machines: a map function for any engine of such jobs, and jobs on Ray that restart."""

from typing import TYPE_CHECKING, Any

__all__ = ["SegmentBatch", "read"]

if TYPE_CHECKING:
    from runtime.bulk.batch import SegmentBatch
    from runtime.bulk.reader import read

_HOME = {"SegmentBatch": "runtime.bulk.batch", "read": "runtime.bulk.reader"}


def __getattr__(name: str) -> Any:
    """Import what is public on first use."""
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

"""DiffSeg's lean runtime: frames in, labels out. NumPy, OpenCV and one inference library; never PyTorch."""

__version__ = "0.2.0"
__all__ = ["DiffSegError", "Result", "Segmenter", "__version__"]

TYPE_CHECKING = False  # a type checker takes it for true; `typing` takes a while, in which Ctrl-C would be a traceback
if TYPE_CHECKING:
    from typing import Any

    from runtime.errors import DiffSegError
    from runtime.result import Result
    from runtime.segmenter import Segmenter

_HOME = {"Segmenter": "runtime.segmenter", "Result": "runtime.result", "DiffSegError": "runtime.errors"}


def __getattr__(name: str) -> "Any":
    # Lazy, so that `import runtime` and `--help` cost no NumPy, OpenCV or inference library.
    if name not in _HOME:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)

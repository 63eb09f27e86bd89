"""The command line with a stand-in for the engine: `python -m tools.soak.standin WORDS`, as `runtime.segment`.

With FAULT in the environment, "KIND:N", the Nth and every later call that writes a file fails as a full disk ("full")
or a read-only folder ("readonly") would let it fail.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.engine.base import Engine
from runtime.engine.registry import EMBEDDED
from runtime.engine.spec import EngineSpec, Level

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ERRORS = {"full": errno.ENOSPC, "readonly": errno.EROFS}
WRITING = ("write_bytes", "replace", "mkdir", "touch")  # of pathlib.Path


class BrightEngine(Engine):
    """Segments by brightness, as an engine with the head labels, in no time."""

    def __init__(self) -> None:
        self.spec = EngineSpec(
            **{"source": "stand-in", "revision": None, "head": "labels", "height": 32, "width": 32, "batch": None},  # type: ignore[arg-type]
            levels=(Level(16, 16, 1),),
            **{"timestep": 300, "prompt": "", "precision": "fp32", "storage": "fp32", "latent_scaling": 1.0},  # type: ignore[arg-type]
            blocks=("down", "mid", "up"),
            thresholds=(1.0,),
        )
        self.device = self.asked = "cpu"
        self.path = EMBEDDED

    def _infer(self, inputs: dict[str, NDArray[Any]]) -> list[np.ndarray]:
        import numpy as np

        frames = inputs["frame"]
        return [(frames[..., 1] > 128).astype(np.uint8), np.full(len(frames), 2, np.int32)]

    def clone(self) -> BrightEngine:
        """Another one."""
        return BrightEngine()


def fail_from(kind: str, number: int) -> None:
    """Let the call of this number, and all later ones, that write files fail."""
    calls = [0]

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Path, *arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] >= number:
                raise OSError(ERRORS[kind], os.strerror(ERRORS[kind]), str(path))
            return function(path, *arguments, **options)

        return called

    for name in WRITING:
        setattr(Path, name, failing(getattr(Path, name)))
    whole = Path.open
    writes = failing(whole)

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        return (writes if set(mode) & set("wax+") else whole)(path, mode, *arguments, **options)

    Path.open = opened  # type: ignore[method-assign,assignment]


def main() -> None:
    """Run the command line."""
    from runtime import segment
    from runtime.segmenter import Segmenter
    from runtime.terminal import run

    Segmenter.open = lambda *arguments, **options: Segmenter(BrightEngine())  # type: ignore[method-assign]
    if fault := os.environ.get("FAULT"):
        kind, _, number = fault.partition(":")
        fail_from(kind, int(number))
    run(segment.app, "standin", writes_late=True)


if __name__ == "__main__":
    main()

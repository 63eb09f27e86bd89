"""What every part of the check is given: the GPU that it runs on, or stand-ins for one.

Nothing here needs more than NumPy, so that the first parts run in a container that has little else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.native.library import Library

ROOT = Path(__file__).resolve().parents[2]
GRID, THRESHOLDS = 16, (0.3, 0.3, 0.3)


class Skipped(Exception):
    """This machine or card cannot run the part. The text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The machine. `device`: number of the GPU; `repeat`: timed runs; `dry`: no GPU, the CPU takes its place."""

    device: int = 0
    repeat: int = 50
    dry: bool = False

    @property
    def name(self) -> str:
        """The device as Segmenters take it."""
        return "cpu" if self.dry else f"cuda:{self.device}"

    def library(self) -> Library:
        """The native library; in a dry run its CPU build. Raises DiffSegError where there is none."""
        from runtime import native
        from runtime.native import build

        if not self.dry:
            return native.load(self.device)
        path = build.cached_library([], cpu=True)
        return native.load(path=path if path.is_file() else build.build_cpu_library(path))

    def torch(self) -> Any:
        """PyTorch, with CUDA unless this is a dry run. Raises Skipped or ModuleNotFoundError."""
        import torch

        if not self.dry and not torch.cuda.is_available():
            raise Skipped(f"PyTorch {torch.__version__} has no CUDA here; install a build of it that has")
        return torch


def softmax_maps(features: NDArray[np.float64]) -> NDArray[np.float32]:
    """Attention maps [n, n] of features [heads, n, d], whose similarity is minus half of their squared distance."""
    import numpy as np

    maps = np.zeros((features.shape[1],) * 2)
    for head in features:
        norms = (head**2).sum(1) / 2
        scores = head @ head.T - norms[:, None] - norms
        scores = np.exp(scores - scores.max(1, keepdims=True))
        maps += scores / scores.sum(1, keepdims=True)
    return (maps / len(features)).astype(np.float32)


def drawn_maps(side: int) -> list[NDArray[np.float32]]:
    """Maps at four resolutions, of regions around random points: a picture of few colours."""
    import numpy as np

    rng = np.random.default_rng(0)
    seeds, colours = rng.random((12, 2)), 1.5 * rng.normal(size=(12, 6))
    pyramid = []
    for level in (side, side // 2, side // 4, side // 8):
        y, x = (np.mgrid[:level, :level] + 0.5) / level
        region = np.argmin([(y - sy) ** 2 + (x - sx) ** 2 for sy, sx in seeds], axis=0)
        picture = colours[region] + 0.1 * rng.normal(size=(level, level, 6))
        pyramid.append(softmax_maps(picture.reshape(1, level * level, 6)))
    return pyramid

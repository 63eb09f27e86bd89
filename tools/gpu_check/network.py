"""PyTorch and the merge core, nothing else: tensors read in place, and a network of Stable Diffusion's shape."""

from __future__ import annotations

import contextlib
import importlib
import statistics
import time
from typing import Any

from tools.gpu_check.bench import GRID, THRESHOLDS, Bench, drawn_maps
from tools.gpu_check.kernels import LABELS

TYPES = ("float32", "float16", "bfloat16")


def arrays(bench: Bench) -> dict[str, Any]:
    """Tensors of every type that are being written on a side stream, and CuPy's arrays: read in place, not early."""
    import numpy as np

    from runtime import native
    from runtime.pyramid.config import MergeConfig

    torch = bench.torch()
    library, config, size = bench.library(), MergeConfig(THRESHOLDS, 8), (64, 64)
    pyramid = drawn_maps(16)
    expected = native.segment(pyramid, config, size, device=_cuda(bench), library=library)
    differ: dict[str, float] = {}
    for dtype in TYPES:
        sources = [torch.from_numpy(level).to(_where(bench)).to(getattr(torch, dtype)) for level in pyramid]
        tensors = [torch.full_like(source, float("nan")) for source in sources]
        _finish(torch, bench)
        # The maps are written only after a delay, on a stream that the default one does not wait for by itself.
        with _side_stream(torch, bench):
            _delay(torch, bench)
            for source, tensor in zip(sources, tensors, strict=True):
                tensor.copy_(source)
            found = native.segment(_given(tensors, bench, dtype), config, size, device=_cuda(bench), library=library)
        differ[f"torch {dtype}"] = float(np.mean(found != expected))
    with contextlib.suppress(ModuleNotFoundError):
        cupy = importlib.import_module("cupy")  # taken where it is; no extra installs it
        with cupy.cuda.Device(bench.device), cupy.cuda.Stream(non_blocking=True):
            there = [cupy.asarray(level) for level in pyramid]
            found = native.segment(there, config, size, device=_cuda(bench), library=library)
        differ["cupy float32"] = float(np.mean(found != expected))
    # Half precision moves a few pixels; a map that is read too early moves most.
    allowed = {name: LABELS if name.endswith("float32") else 0.05 for name in differ}
    missed = [f"{name}: {share:.2%} of the labels differ" for name, share in differ.items() if share > allowed[name]]
    return {"labels_differ": differ, "missed": missed}


def network(bench: Bench) -> dict[str, Any]:
    """A network of Stable Diffusion's shape, by PyTorch alone, in float16; its maps are merged where they are."""
    import numpy as np

    from runtime import native
    from runtime.pyramid.config import MergeConfig

    torch = bench.torch()
    library, side = bench.library(), 16 if bench.dry else 64
    config, size = MergeConfig((0.01,) * 3, min(GRID, side)), (8 * side,) * 2
    torch.manual_seed(0)
    model = _network(torch, 32 if bench.dry else 320).to(_where(bench))
    dtype = torch.float32 if bench.dry else torch.float16
    model = model.to(dtype).eval()
    frame = torch.rand((1, 4, side, side), device=_where(bench), dtype=dtype)
    times: dict[str, list[float]] = {"network": [], "merge": []}
    with torch.inference_mode():
        for _ in range(2 if bench.dry else bench.repeat + 3):
            start = time.perf_counter()
            maps = model(frame)
            _finish(torch, bench)
            middle = time.perf_counter()
            given = _given(maps, bench, str(maps[0].dtype).rpartition(".")[2])
            labels = native.segment(given, config, size, device=_cuda(bench), library=library)
            times["network"].append((middle - start) * 1e3)
            times["merge"].append((time.perf_counter() - middle) * 1e3)
        copied = [level.float().cpu().numpy() for level in maps]
    again = native.segment(copied, config, size, device=_cuda(bench), library=library)
    differ = float(np.mean(labels != again))
    median = {name: statistics.median(found[-bench.repeat :]) for name, found in times.items()}
    share = median["merge"] / sum(median.values())
    missed = [f"{differ:.2%} of the labels differ between the GPU's maps and the host's"] if differ > LABELS else []
    return {"milliseconds": median, "merge_share": share, "labels_differ": differ, "missed": missed}


def _network(torch: Any, width: int) -> Any:
    """Convolutions and self-attention at four resolutions, as many as Stable Diffusion 1 has until its last map."""
    nn = torch.nn

    class Attention(nn.Module):  # type: ignore[name-defined]
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm, self.heads = nn.GroupNorm(32, channels), 8
            self.project = nn.Linear(channels, 3 * channels)
            self.out = nn.Linear(channels, channels)

        def forward(self, x: Any) -> Any:
            tokens = self.norm(x).flatten(2).transpose(1, 2)
            q, k, v = self.project(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            weights = torch.softmax((4 * q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).float(), -1)
            mixed = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)
            return x + self.out(mixed).transpose(1, 2).unflatten(2, x.shape[2:]), weights.mean(1)

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(32, after), nn.SiLU())
            self.attention = Attention(after)
            self.second = nn.Sequential(nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(32, after), nn.SiLU())

        def forward(self, x: Any) -> Any:
            x, maps = self.attention(self.first(x))
            return x + self.second(x), maps

    class Network(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            widths = [width, 2 * width, 4 * width, 4 * width]
            starts = [4, *widths]
            self.levels = nn.ModuleList(
                nn.ModuleList([Block(starts[level], widths[level]), Block(widths[level], widths[level])])
                for level in range(4)
            )

        def forward(self, x: Any) -> list[Any]:
            found = []
            for level in self.levels:
                maps = []
                for block in level:
                    x, weights = block(x)
                    maps.append(weights)
                found.append(sum(maps) / len(maps))
                x = nn.functional.avg_pool2d(x, 2)
            return found

    return Network()


def _cuda(bench: Bench) -> str:
    return f"cuda:{bench.device}"  # also in a dry run: there the library is the CPU's


def _where(bench: Bench) -> str:
    return "cpu" if bench.dry else _cuda(bench)


def _given(tensors: list[Any], bench: Bench, dtype: str) -> list[Any]:
    """The tensors; in a dry run their addresses, as if they were on a GPU."""
    if not bench.dry:
        return tensors
    from runtime.gpu.arrays import DeviceArray

    kept = [tensor.contiguous() for tensor in tensors]
    return [DeviceArray(tensor.data_ptr(), tuple(tensor.shape), dtype, bench.device, tensor) for tensor in kept]


def _side_stream(torch: Any, bench: Bench) -> Any:
    if bench.dry:
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(_where(bench)))


def _delay(torch: Any, bench: Bench) -> None:
    """Keep the current stream busy for some milliseconds, so that what reads too early is seen."""
    if not bench.dry:
        torch.cuda._sleep(50_000_000)


def _finish(torch: Any, bench: Bench) -> None:
    if not bench.dry:
        torch.cuda.synchronize(bench.device)

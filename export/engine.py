"""The export itself: load, rewrite, trace, write, check, move into place."""

import shutil
import tempfile
from pathlib import Path

from export.check import OutputCheck, check_engine
from runtime.errors import DiffSegError
from runtime.sidecar import EngineSpec


def export_engine(
    model: str,
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    timestep: int = 300,
    prompt: str = "",
    thresholds: tuple[float, ...] = (1.1, 1.1, 1.1),
    revision: str | None = None,
    compact: bool = False,
) -> list[OutputCheck]:
    """Export `model` (diffusers folder or hub id) to the attention engine `path` and check it against PyTorch.

    `size`: (height, width) of the frame, the model's own if None. `batch`: None for dynamic. Nothing is left at
    `path` unless the check passes; an engine that was there before stays until then.

    Raises DiffSegError when the model cannot be loaded, the size does not fit, the disk is full, or the engine
    does not reproduce PyTorch.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workplace = tempfile.TemporaryDirectory(prefix=f".{path.stem}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise DiffSegError(f"cannot write into {path.parent} ({error.strerror}); choose another --output") from None
    with workplace as folder:
        part = Path(folder) / path.name
        try:
            _write(model, part, size, batch, timestep, prompt, thresholds, revision, compact)
        except OSError as error:
            raise DiffSegError(f"cannot write {path}: {error.strerror or error}; free some space") from None
        checks = check_engine(part, model)
        failed = [check for check in checks if not check.passed]
        if failed:
            worst = max(failed, key=lambda check: check.divergence)
            raise DiffSegError(
                f"the engine does not reproduce PyTorch: {worst.output} has mean row KL {worst.divergence:.1e} "
                f"(bound {worst.bound:.0e}), row sum error {worst.row_sum:.1e}, finite: {worst.finite}; no engine was "
                "left; report this with the model's name"
            )
        # The engine last: where it is, what belongs to it is there too.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            shutil.move(file, path.parent / file.name)
    return checks


def _write(
    model: str,
    path: Path,
    size: tuple[int, int] | None,
    batch: int | None,
    timestep: int,
    prompt: str,
    thresholds: tuple[float, ...],
    revision: str | None,
    compact: bool,
) -> None:
    import diffusers
    import torch

    import runtime
    from export.network import FrameToPyramid, pyramid_levels
    from export.onnx import write_onnx
    from export.pipeline import load_pipeline

    pipeline = load_pipeline(model, prompt, storage="fp16" if compact else "fp32", revision=revision)
    height, width = size or (pipeline.native_size, pipeline.native_size)
    if height % pipeline.stride or width % pipeline.stride:
        raise DiffSegError(
            f"size {height}x{width} does not fit: this model takes multiples of {pipeline.stride}; for example "
            f"{_nearest(height, pipeline.stride)}x{_nearest(width, pipeline.stride)}"
        )
    source = pipeline.source
    network = FrameToPyramid(pipeline, timestep).eval()
    spec = EngineSpec(
        source=source,
        revision=revision,
        head="attention",
        height=height,
        width=width,
        batch=batch,
        levels=pyramid_levels(network, height, width),
        timestep=timestep,
        prompt=prompt,
        precision="fp32",
        storage="fp16" if compact else "fp32",
        latent_scaling=network.latent_scaling,
        thresholds=thresholds,
        producer={
            "diffseg": runtime.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    )
    write_onnx(network, spec, path)


def _nearest(side: int, stride: int) -> int:
    return max(round(side / stride), 1) * stride

"""The export itself: load, rewrite, trace, write, check, move into place."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.check.labels import LabelsCheck
from export.check.maps import OutputCheck, check_engine
from export.graph.attention import BLOCKS
from export.graph.count import Cost, network_cost
from export.progress import Stages
from runtime.engine.spec import EngineSpec, sidecar_path
from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What to export and how. `model`: diffusers folder, hub id or checkpoint file.

    `size`: (height, width) of the frame, the model's own if None. `batch`: None for dynamic. `blocks`: of down, mid
    and up, those whose maps are wanted. `precision`: of the arithmetic; `compact` keeps float32 arithmetic but
    stores the weights as float16. `thresholds`: the engine's default for the merge, the
    family's if None. `noise_seed`: of the noise added to the latent, None for none. `vae`: folder or hub id of another
    VAE. `config`: of a checkpoint file, the folder or hub id with its configuration. `head`: attention or labels.
    `grid` (None: 16, or less where the finest attention is smaller) and `weights`, as of `runtime.merge.MergeConfig`:
    the merge's defaults, and with the head labels, like the number of thresholds, part of the graph. `target`: gpu or
    cpu, what the graph's attention is written for; any host runs either.
    """

    model: str
    revision: str | None = None
    size: tuple[int, int] | None = None
    batch: int | None = 1
    precision: str = "fp32"
    compact: bool = False
    blocks: tuple[str, ...] = BLOCKS
    timestep: int = 300
    prompt: str = ""
    thresholds: tuple[float, ...] | None = None
    noise_seed: int | None = None
    vae: str | None = None
    config: str | None = None
    head: str = "attention"
    grid: int | None = None
    weights: str | tuple[float, ...] = "proportional"
    target: str = "gpu"

    @property
    def storage(self) -> str:
        """Precision of the weights in the file."""
        return "fp16" if self.compact else self.precision


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export did: the engine's description, the comparison with PyTorch, the stages' time, and the
    network's cost before (U-Net and VAE encoder) and after."""

    spec: EngineSpec
    checks: list[OutputCheck | LabelsCheck]
    stages: Stages
    before: Cost
    after: Cost


class CheckFailed(DiffSegError):
    """An engine that does not reproduce PyTorch. `checks`: the comparison, output by output."""

    def __init__(self, checks: list[OutputCheck | LabelsCheck]) -> None:
        self.checks = checks
        failed = [check for check in checks if not check.passed]
        maps = [check for check in failed if isinstance(check, OutputCheck)]
        found = str(failed[0])
        if maps:
            worst = max(maps, key=lambda check: check.divergence)
            found = (
                f"{worst.output} has mean row KL {worst.divergence:.1e} (bound {worst.bound:.1e}), row sum error "
                f"{worst.row_sum:.1e}, finite: {worst.finite}"
            )
        super().__init__(
            f"the engine does not reproduce PyTorch: {found}; no engine was left; report this with the model's name"
        )


def export_engine(request: ExportRequest, path: Path, *, check: bool = True) -> ExportReport:
    """Export `request` to the engine `path` and check it against PyTorch.

    Nothing is left at `path` unless the check passes; an engine that was there before stays until then.

    Raises DiffSegError when the model cannot be loaded, the size does not fit, the disk is full, or the engine
    does not reproduce PyTorch.
    """
    stages = Stages()
    for target in (path, sidecar_path(path)):
        if target.is_dir():
            raise DiffSegError(f"{target} is a folder; expected a file or nothing there, choose another --output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workplace = tempfile.TemporaryDirectory(prefix=f".{path.stem}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise DiffSegError(f"cannot write into {path.parent} ({error.strerror}); choose another --output") from None
    with workplace as folder:
        part = Path(folder) / path.name
        try:
            spec, before, after = _write(request, part, stages)
        except OSError as error:
            raise DiffSegError(f"cannot write {path}: {error.strerror or error}; free some space") from None
        checks: list[OutputCheck | LabelsCheck] = []
        if check:
            with stages("check"):
                checks = check_engine(part, request.model, vae=request.vae, config=request.config)
        if not all(found.passed for found in checks):
            raise CheckFailed(checks)
        data = path.with_name(f"{path.name}.data")
        if not part.with_name(data.name).exists():
            data.unlink(missing_ok=True)  # of an older, larger engine of this name
        # The engine last: where it is, what belongs to it is there too.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            file.replace(path.parent / file.name)
    return ExportReport(spec, checks, stages, before, after)


def _write(request: ExportRequest, path: Path, stages: Stages) -> tuple[EngineSpec, Cost, Cost]:
    """Load, rewrite, trace and write; the pipeline is freed on return."""
    with stages("load"):
        import diffusers
        import torch

        import runtime
        from export.describe import check_levels
        from export.graph.network import FrameToPyramid, pyramid_levels
        from export.graph.trace import write_onnx
        from export.model.load import load_pipeline

        pipeline = load_pipeline(
            request.model,
            request.prompt,
            request.precision,
            storage=request.storage,
            revision=request.revision,
            size=request.size,
            vae=request.vae,
            config=request.config,
        )
    height, width = request.size or (pipeline.native_size, pipeline.native_size)
    parameters = sum(p.numel() for module in (pipeline.unet, pipeline.vae) for p in module.parameters())
    needed = parameters * {"fp32": 4, "fp16": 2, "bf16": 2}[request.storage]
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DiffSegError(
            f"the disk of {path.parent.parent} has {free / 1e6:.0f} MB left, the engine needs {needed / 1e6:.0f} MB; "
            "free some space or choose another --output"
        )
    with stages("fold"):
        network = FrameToPyramid(
            pipeline,
            request.timestep,
            request.blocks,
            size=(height, width),
            noise_seed=request.noise_seed,
            target=request.target,
        ).eval()
        levels = pyramid_levels(network, height, width)
    check_levels(levels, request.blocks)
    side = min(levels[0].height, levels[0].width)
    spec = EngineSpec(
        source=pipeline.source,
        revision=request.revision,
        head=request.head,
        height=height,
        width=width,
        batch=request.batch,
        levels=levels,
        timestep=request.timestep,
        prompt=request.prompt,
        precision=request.precision,
        storage=request.storage,
        latent_scaling=network.latent_scaling,
        blocks=request.blocks,
        thresholds=request.thresholds or pipeline.family.thresholds,
        grid=request.grid or min(16, side),
        weights=request.weights,
        noise_seed=request.noise_seed,
        vae=pipeline.vae_source,
        target=request.target,
        producer={
            "diffseg": runtime.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    )
    before = Cost(parameters, network_cost(network, height, width).flops)
    return spec, before, write_onnx(_with_head(network, spec), spec, path, stages)


def _with_head(network: "nn.Module", spec: EngineSpec) -> "nn.Module":
    """The whole graph. Raises DiffSegError when grid or weights do not fit the pyramid."""
    from export.graph.head import FrameToLabels, LabelsHead

    try:
        # Built for either head: the merge's defaults must fit the pyramid where they are not part of the graph, too.
        head = LabelsHead(spec.levels, (spec.height, spec.width), spec.grid, spec.weights)
    except ValueError as error:
        raise DiffSegError(str(error)) from None
    return FrameToLabels(network, head) if spec.head == "labels" else network

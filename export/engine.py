"""The export: load, rewrite, trace, write, check, move into place."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.check.maps import Check, OutputCheck
from export.graph.count import Cost, graph_cost, network_cost
from export.heads.registry import extra_inputs, find_head, load_head, refuse_options
from export.model.families import BLOCKS
from export.parity import check_engine, check_installed_for
from export.progress import Phases
from runtime.engine.fields import words as checked_words
from runtime.engine.inputs import DEFAULT_INPUT, find_input
from runtime.engine.spec import EngineSpec, Level, sidecar_path
from runtime.errors import DiffSegError
from runtime.merge.registry import DEFAULT
from runtime.pyramid.anchors import anchor_queries
from runtime.pyramid.weights import resolution_ratios

if TYPE_CHECKING:
    from export.graph.network import UNetPass
    from export.model.load import LoadedModel


NO_NOISE = -1  # in place of a seed: no noise is added


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What to export and how.

    `model`: diffusers folder, hub id or checkpoint file; `revision`: of the hub's repository.
    `size`: (height, width) of the frame in pixels, the model's own if None. `batch`: frames per call, None for a
    dynamic batch. `precision`: fp32, fp16 or bf16, of the arithmetic. `compact`: float32 arithmetic, float16 weights.
    `blocks`: of down, mid and up, those whose maps are averaged. `timestep`, `prompt`: of the one U-Net pass.
    `noise_seed`: of the noise added to the latent; NO_NOISE for no noise. Timestep and seed are the head's own if None
    (`export.heads.registry`). `vae`: folder or hub id of another VAE. `config`:
    of a checkpoint file, the folder or hub id with its configuration. `head`: a name in `export.heads.registry`.
    `thresholds` (None: the family's), `grid` (None: 16, or less if the finest maps are smaller) and `weights` and
    `solver` (None: the head's): the engine's defaults for the merge, as in `runtime.merge.MergeConfig`; with the head
    labels, `grid`, `weights`, `solver` and the number of thresholds are part of the graph. `auto`: where
    no threshold is asked for, segments are chosen for each frame. `target`: gpu or cpu, for
    which the attention is written; every host runs both. `words`: whose maps the engine gives, too. `input`: how the
    graph takes a frame, a name in `runtime.engine.inputs`.
    """

    model: str
    revision: str | None = None
    size: tuple[int, int] | None = None
    batch: int | None = 1
    precision: str = "fp32"
    compact: bool = False
    blocks: tuple[str, ...] = BLOCKS
    timestep: int | None = None
    prompt: str = ""
    thresholds: tuple[float, ...] | None = None
    noise_seed: int | None = None
    vae: str | None = None
    config: str | None = None
    head: str = "attention"
    grid: int | None = None
    weights: str | tuple[float, ...] = "proportional"
    solver: str | None = None
    auto: bool = False
    target: str = "gpu"
    words: tuple[str, ...] = ()
    input: str = DEFAULT_INPUT.name

    @property
    def storage(self) -> str:
        """Precision of the weights in the file."""
        return "fp16" if self.compact else self.precision


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export did.

    `spec`: the engine's description. `checks`: the comparison with PyTorch. `phases`: their times. `before`, `after`:
    cost of the model's U-Net and VAE encoder, and of the engine.
    """

    spec: EngineSpec
    checks: Sequence[Check]
    phases: Phases
    before: Cost
    after: Cost


class CheckFailed(DiffSegError):
    """An engine does not reproduce PyTorch. `checks`: the whole comparison."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self.checks = checks
        failed = [check for check in checks if not check.passed]
        maps = [check for check in failed if isinstance(check, OutputCheck)]
        found = max(maps, key=lambda check: check.divergence) if maps else failed[0]
        super().__init__(
            f"the engine does not reproduce PyTorch: {found}; no engine was left; report this with the model's name"
        )


def export_engine(request: ExportRequest, path: Path, *, check: bool = True) -> ExportReport:
    """Export `request` to the engine `path`, and compare it with PyTorch unless `check` is False.

    A new engine takes its place only after the check has passed; until then an older engine stays.

    Raises DiffSegError when the request or the model cannot be exported or the disk is full, CheckFailed when the
    engine does not reproduce PyTorch.
    """
    check_request(request, check=check)
    phases = Phases()
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
            spec, before, after = _write(request, part, phases)
        except OSError as error:
            raise DiffSegError(f"cannot write {path}: {error.strerror or error}; free some space") from None
        checks: list[Check] = []
        if check:
            with phases("check"):
                checks = check_engine(part, request.model, vae=request.vae, config=request.config)
        if not all(found.passed for found in checks):
            raise CheckFailed(checks)
        data = path.with_name(f"{path.name}.data")
        if not part.with_name(data.name).exists():
            data.unlink(missing_ok=True)  # of an older, larger engine of this name
        # The engine is moved last: when it is there, the files that belong to it are there, too.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            file.replace(path.parent / file.name)
    return ExportReport(spec, checks, phases, before, after)


def check_request(request: ExportRequest, *, check: bool = True) -> None:
    """Refuse, before anything heavy is imported, what cannot be exported, or not be compared with PyTorch here.

    Raises DiffSegError when there is no such head or input, it does not take one of the options, a word cannot be one,
    or `check` is True and the package that checks the precision is not installed.
    """
    given = [f.name for f in fields(request) if f.name != "model" and getattr(request, f.name) != f.default]
    find_input(request.input)
    refuse_options(find_head(request.head), given, request.solver)
    if request.auto and request.solver not in (None, DEFAULT):
        raise DiffSegError(f"--auto: expected the solver {DEFAULT}, found {request.solver}; leave one of the two out")
    try:
        checked_words("--words", list(request.words))
    except ValueError as error:
        raise DiffSegError(str(error)) from None
    if check:
        check_installed_for(request.precision)


def _write(request: ExportRequest, path: Path, phases: Phases) -> tuple[EngineSpec, Cost, Cost]:
    """Load, rewrite, trace and write; the model is freed on return."""
    with phases("load"):
        from export.graph.features import FrameToFeatures, feature_level
        from export.graph.network import FrameToPyramid, UNetPass, pyramid_levels
        from export.graph.onnx_file import write_engine
        from export.graph.trace import trace
        from export.model.describe import check_levels
        from export.model.load import load_model

        model = load_model(
            request.model,
            request.prompt,
            request.precision,
            storage=request.storage,
            revision=request.revision,
            size=request.size,
            vae=request.vae,
            config=request.config,
            words=request.words,
        )
    height, width = request.size or (model.native_size, model.native_size)
    parameters = sum(p.numel() for module in (model.unet, model.vae) for p in module.parameters())
    _check_disk(path, parameters * {"fp32": 4, "fp16": 2, "bf16": 2}[request.storage])
    with phases("fold"):
        entry = find_head(request.head)
        timestep = entry.timestep if request.timestep is None else request.timestep
        seed = entry.noise_seed if request.noise_seed is None else request.noise_seed
        options: dict[str, Any] = {
            "size": (height, width),
            "noise_seed": None if seed == NO_NOISE else seed,
            "target": request.target,
            "frame_input": find_input(request.input),
        }
        network: UNetPass
        channels = None
        if entry.reads == "features":
            network = features = FrameToFeatures(model, timestep, **options).eval()
            level, channels = feature_level(features, height, width)
            levels: tuple[Level, ...] = (level,)
        else:
            network = pyramid = FrameToPyramid(model, timestep, request.blocks, **options).eval()
            levels = pyramid_levels(pyramid, height, width)
    check_levels(levels, request.blocks)
    spec = _describe(request, model, network, levels, channels, height, width)
    _check_merge_defaults(spec)
    whole = network.run if entry.reads == "features" else None
    before = Cost(parameters, network_cost(network, height, width, whole).flops)
    head = load_head(spec.head)
    with phases("trace"):
        graph = trace(head.assemble(network, spec), spec, extra_inputs(spec))
    with phases("write"):
        write_engine(graph, spec, path)
    return spec, before, graph_cost(graph, spec.batch or 1)


def _describe(
    request: ExportRequest,
    model: "LoadedModel",
    network: "UNetPass",
    levels: tuple[Level, ...],
    channels: int | None,
    height: int,
    width: int,
) -> EngineSpec:
    """What the engine says about itself."""
    import diffusers
    import torch

    import runtime

    return EngineSpec(
        source=model.source,
        revision=request.revision,
        head=request.head,
        height=height,
        width=width,
        batch=request.batch,
        levels=levels,
        timestep=network.timestep,
        prompt=request.prompt,
        precision=request.precision,
        storage=request.storage,
        latent_scaling=network.latent_scaling,
        blocks=request.blocks,
        thresholds=request.thresholds or model.family.thresholds,
        grid=request.grid or min(16, levels[0].height, levels[0].width),
        weights=request.weights,
        solver=request.solver or find_head(request.head).solvers[0],
        auto=request.auto,
        noise_seed=network.noise_seed,
        channels=channels,
        vae=model.vae_source,
        target=request.target,
        words=request.words,
        input=request.input,
        producer={
            "diffseg": runtime.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    )


def _check_merge_defaults(spec: EngineSpec) -> None:
    """Raise DiffSegError when grid or weights do not fit the pyramid, whether or not they are part of the graph."""
    grids = [(level.height, level.width) for level in spec.levels]
    try:
        anchor_queries(grids[0], spec.grid)
        resolution_ratios(spec.weights, grids, [level.layers for level in spec.levels])
    except ValueError as error:
        raise DiffSegError(str(error)) from None


def _check_disk(path: Path, needed: int) -> None:
    """Raise DiffSegError when the disk has less than `needed` bytes left."""
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DiffSegError(
            f"the disk of {path.parent.parent} has {free / 1e6:.0f} MB left, the engine needs {needed / 1e6:.0f} MB; "
            "free some space or choose another --output"
        )

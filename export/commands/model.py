"""`python -m export MODEL --output engines/NAME`: writes an engine file and checks it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from export.commands import plan as plan_command
from export.commands.options import (
    ALL_BLOCKS,
    Attention,
    Config,
    Input,
    Model,
    NewEngine,
    Revision,
    Size,
    Vae,
    engine_path,
    read_batch,
    read_blocks,
    read_seed,
    read_size,
    read_thresholds,
    read_weights,
    read_words,
)
from export.commands.report import report
from export.heads.registry import HEADS
from runtime.engine.inputs import DEFAULT_INPUT
from runtime.engine.plan import build_options
from runtime.errors import DiffSegError
from runtime.terminal import USAGE_ERROR, check_extra, one_line_errors, options_named

if TYPE_CHECKING:
    from export.engine import ExportReport

PRECISIONS = ("fp32", "fp16", "bf16")
TARGETS = ("gpu", "cpu")


def _by_head(values: list[Any]) -> str:
    """Defaults as `--help` gives them: the first head's, and those of heads that differ."""
    words = ["none" if value is None else str(value) for value in values]
    others = (f"{head.name}: {word}" for head, word in zip(HEADS, words, strict=True) if word != words[0])
    return "; ".join((words[0], *others))


_TIMESTEPS = _by_head([head.timestep for head in HEADS])
_SEEDS = _by_head([head.noise_seed for head in HEADS])


def export_model(
    model: Model,
    output: NewEngine,
    size: Size = None,
    batch: Annotated[str, typer.Option(metavar="N|dynamic", help="Frames per call.")] = "1",
    precision: Annotated[str, typer.Option(metavar="|".join(PRECISIONS), help="Of the arithmetic.")] = "fp32",
    attention: Attention = ALL_BLOCKS,
    head: Annotated[
        str,
        typer.Option(
            metavar="|".join(head.name for head in HEADS),
            help="What the engine gives. " + "; ".join(f"{head.name}: {head.gives}" for head in HEADS) + ".",
        ),
    ] = HEADS[0].name,
    grid: Annotated[
        int | None, typer.Option(metavar="N", help="Default anchors per axis; fixed in a labels engine.  [default: 16]")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="Default weights of the resolutions: proportional, per-tensor, or numbers: 1,0,0,0.")
    ] = "proportional",
    solver: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Default solver, as of python -m runtime.segment; fixed in a labels engine."),
    ] = None,
    timestep: Annotated[
        int | None,
        typer.Option(metavar="T", help=f"Diffusion timestep of the one U-Net pass.  [default: {_TIMESTEPS}]"),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Text prompt, a constant of the engine.")] = "",
    words: Annotated[
        str | None,
        typer.Option(metavar="WORD,WORD,...", help="Words that segments may be called; the U-Net runs a second time."),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(metavar="T,T,...", help="Default KL thresholds, one per iteration; the model's if left out."),
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Where no threshold is asked for, it is auto.")] = False,
    noise_seed: Annotated[
        str | None,
        typer.Option(metavar="N|none", help=f"Seed of the timestep's noise in the latent.  [default: {_SEEDS}]"),
    ] = None,
    vae: Vae = None,
    config: Config = None,
    revision: Revision = None,
    input: Input = DEFAULT_INPUT.name,
    target: Annotated[
        str,
        typer.Option(metavar="|".join(TARGETS), help="Processor for which the attention is written; both run it."),
    ] = "gpu",
    compact: Annotated[bool, typer.Option("--compact", help="Store weights as float16: half the file.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Also build a TensorRT plan of the engine.")] = False,
    flavour: plan_command.Flavour = None,
    optimization_level: plan_command.OptimizationLevel = plan_command.OPTIMIZATION_LEVEL,
    workspace: plan_command.Workspace = plan_command.WORKSPACE,
    profile: plan_command.Profile = None,
    version_compatible: plan_command.VersionCompatible = False,
    hardware_compatible: plan_command.HardwareCompatible = False,
    tf32: plan_command.Tf32 = False,
    targets: plan_command.Targets = None,
) -> None:
    """Export a Stable Diffusion pipeline's VAE encoder and U-Net to an ONNX engine: attention, labels or features.

    The file is checked against PyTorch before it takes its place. Exit status: 0 done, 1 failed, 2 bad usage.
    """
    plan_options: dict[str, Any] = {
        "flavour": flavour,
        "optimization_level": optimization_level,
        "workspace": workspace,
        "profile": profile,
        "version_compatible": version_compatible,
        "hardware_compatible": hardware_compatible,
        "tf32": tf32,
        "targets": targets,
    }
    with one_line_errors(USAGE_ERROR):
        from export.engine import CheckFailed, ExportRequest, check_request, export_engine

        check_extra("export")
        _check_choices(precision, target, timestep, grid, compact)
        request = ExportRequest(
            model=model,
            revision=revision,
            size=read_size(size),
            batch=read_batch(batch),
            precision=precision,
            compact=compact,
            blocks=read_blocks(attention),
            timestep=timestep,
            prompt=prompt,
            thresholds=read_thresholds(threshold),
            noise_seed=read_seed(noise_seed),
            vae=vae,
            config=config,
            head=head,
            grid=grid,
            weights=read_weights(weights),
            solver=solver,
            auto=auto,
            target=target,
            words=read_words(words),
            input=input,
        )
        check_extra("export")
        check_request(request)
        if output.is_dir():
            raise DiffSegError(f"--output {output} is a folder; expected a name in it, such as {output}/NAME")
        if not plan and build_options(**plan_options):
            raise DiffSegError("--flavour and the builder's other options go with --plan; add it, or leave them out")
        if profile is not None and batch != "dynamic":
            raise DiffSegError(f"--profile goes with --batch dynamic, found --batch {batch}")
        if plan:
            plan_command.plan_request(**plan_options)
    path = engine_path(output)
    with one_line_errors():
        try:
            with options_named({"grid": "--grid", "weights": "--weights"}):
                done = export_engine(request, path)
        except CheckFailed as error:
            report(error.checks)
            raise
    report(done.checks)
    _summarise(done, Path(model), path)
    if plan:
        plan_command.build_afresh(path, **plan_options)


def _check_choices(precision: str, target: str, timestep: int | None, grid: int | None, compact: bool) -> None:
    """Raise DiffSegError for the first option that is out of range."""
    if precision not in PRECISIONS:
        raise DiffSegError(f"--precision: expected {', '.join(PRECISIONS)}, found {precision!r}")
    if target not in TARGETS:
        raise DiffSegError(f"--target: expected {', '.join(TARGETS)}, found {target!r}")
    if timestep is not None and not 0 <= timestep < 1000:
        raise DiffSegError(f"--timestep: expected 0 to 999, found {timestep}")
    if grid is not None and grid < 2:
        raise DiffSegError(f"--grid: expected at least 2 anchors per axis, found {grid}")
    if compact and precision != "fp32":
        raise DiffSegError(f"--compact goes with --precision fp32; the weights of {precision} are already as small")


def _summarise(done: ExportReport, model: Path, path: Path) -> None:
    """Times, cost and files, on stderr."""
    files = [file for file in (path, path.with_name(path.name + ".data")) if file.exists()]
    before = f", {_weights_on_disk(model) / 1e6:.1f} MB" if model.exists() else ""
    print(f"{done.phases}\nmodel:  {done.before}{before}", file=sys.stderr)
    print(f"engine: {done.after}, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB", file=sys.stderr)
    print(f"wrote {path} and {path}.json", file=sys.stderr)


def _weights_on_disk(model: Path) -> int:
    """Bytes of a checkpoint file, or of all weights in a pipeline folder."""
    if model.is_file():
        return model.stat().st_size
    parts = (list(part.glob("*.safetensors")) for part in model.iterdir() if part.is_dir())
    return sum(file.stat().st_size for files in parts for file in files)

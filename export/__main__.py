"""Command line: `python -m export MODEL --output engines/NAME` writes an engine file and checks it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from export.plan import command as plan_command
from runtime.engine.plan import build_options
from runtime.errors import DiffSegError
from runtime.terminal import USAGE_ERROR, one_line_errors, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from export.check.labels import LabelsCheck
    from export.check.maps import OutputCheck

PRECISIONS = ("fp32", "fp16", "bf16")
BLOCKS = ("down", "mid", "up")
HEADS = ("attention", "labels")
TARGETS = ("gpu", "cpu")


class _ExportUnlessNamed(typer.core.TyperGroup):
    """`python -m export MODEL ...` without a subcommand's name exports."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["model", *args])


app = typer.Typer(cls=_ExportUnlessNamed, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


app.command("plan")(plan_command.plan)


@app.command("model", epilog="Other commands, each with --help: list, check, plan, quantize.")
def export_model(
    model: Annotated[
        str, typer.Argument(help="Diffusers folder, id on the model hub (owner/name), or .safetensors checkpoint.")
    ],
    output: Annotated[Path, typer.Option(help="Engine to write: engines/NAME gives engines/NAME.onnx.")],
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Frame size in pixels; the model's own if left out.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N|dynamic", help="Frames per call.")] = "1",
    precision: Annotated[str, typer.Option(metavar="fp32|fp16|bf16", help="Of the arithmetic.")] = "fp32",
    attention: Annotated[str, typer.Option(help="U-Net blocks whose maps are used.")] = "down,mid,up",
    head: Annotated[
        str,
        typer.Option(metavar="attention|labels", help="What the engine gives; labels: all of DiffSeg in the graph."),
    ] = "attention",
    grid: Annotated[
        int | None, typer.Option(metavar="N", help="Default anchors per axis; fixed in a labels engine.  [default: 16]")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="Default weights of the resolutions: proportional, per-tensor, or numbers: 1,0,0,0.")
    ] = "proportional",
    timestep: Annotated[int, typer.Option(help="Diffusion timestep of the one U-Net pass.")] = 300,
    prompt: Annotated[str, typer.Option(help="Text prompt, baked in.")] = "",
    threshold: Annotated[
        str | None,
        typer.Option(metavar="T,T,...", help="Default KL thresholds, one per iteration; the model's if left out."),
    ] = None,
    noise_seed: Annotated[
        int | None, typer.Option(metavar="N", help="Add the timestep's noise to the latent, of this seed; none if out.")
    ] = None,
    vae: Annotated[
        str | None, typer.Option(metavar="FOLDER|ID", help="Another VAE, such as a tiny autoencoder (TAESD).")
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FOLDER|ID", help="Configuration and tokenizer of a checkpoint file.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the model hub.")] = None,
    target: Annotated[
        str, typer.Option(metavar="gpu|cpu", help="What the attention is written for; either runs anywhere.")
    ] = "gpu",
    compact: Annotated[bool, typer.Option("--compact", help="Store weights as float16: half the file.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Build a TensorRT plan of the engine, too.")] = False,
    flavour: plan_command.Flavour = None,
    optimization_level: plan_command.OptimizationLevel = plan_command.OPTIMIZATION_LEVEL,
    workspace: plan_command.Workspace = plan_command.WORKSPACE,
    profile: plan_command.Profile = None,
    version_compatible: plan_command.VersionCompatible = False,
    hardware_compatible: plan_command.HardwareCompatible = False,
    tf32: plan_command.Tf32 = False,
    targets: plan_command.Targets = None,
) -> None:
    """Export a Stable Diffusion pipeline's VAE encoder and U-Net to an ONNX engine with its attention exposed.

    The file is checked against PyTorch before it takes its place. Exit status: 0 done, 1 failed, 2 bad usage.
    """
    with one_line_errors(USAGE_ERROR):
        request = _parse(size, batch, timestep, threshold, attention)
        if precision not in PRECISIONS:
            raise DiffSegError(f"--precision: expected {', '.join(PRECISIONS)}, found {precision!r}")
        if head not in HEADS:
            raise DiffSegError(f"--head: expected {', '.join(HEADS)}, found {head!r}")
        if target not in TARGETS:
            raise DiffSegError(f"--target: expected {', '.join(TARGETS)}, found {target!r}")
        fixed_weights = _weights(weights)
        if grid is not None and grid < 2:
            raise DiffSegError(f"--grid: expected at least 2 anchors per axis, found {grid}")
        if noise_seed is not None and not 0 <= noise_seed < 2**63:
            raise DiffSegError(f"--noise-seed: expected 0 to 2^63 - 1, found {noise_seed}")
        if compact and precision != "fp32":
            raise DiffSegError(f"--compact goes with --precision fp32; {precision} weights are as small already")
        if output.is_dir():
            raise DiffSegError(f"--output {output} is a folder; expected a name in it, such as {output}/NAME")
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
        if not plan and build_options(**plan_options):
            raise DiffSegError("--flavour and the builder's other options go with --plan")
        if profile is not None and batch != "dynamic":
            raise DiffSegError(f"--profile goes with --batch dynamic, found --batch {batch}")
        if plan:
            plan_command.plan_request(**plan_options)
    path = output if output.suffix == ".onnx" else output.with_name(output.name + ".onnx")
    with one_line_errors():
        from export.engine import CheckFailed, ExportRequest, export_engine

        asked = ExportRequest(
            model=model,
            prompt=prompt,
            revision=revision,
            precision=precision,
            compact=compact,
            noise_seed=noise_seed,
            vae=vae,
            config=config,
            head=head,
            grid=grid,
            weights=fixed_weights,
            target=target,
            **request,
        )
        try:
            done = export_engine(asked, path)
        except CheckFailed as error:
            report(error.checks)
            raise
    report(done.checks)
    files = [file for file in (path, path.with_name(path.name + ".data")) if file.exists()]
    before = f", {_weights_on_disk(Path(model)) / 1e6:.1f} MB" if Path(model).exists() else ""
    print(f"{done.stages}\nmodel:  {done.before}{before}", file=sys.stderr)
    print(f"engine: {done.after}, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB", file=sys.stderr)
    print(f"wrote {path} and {path}.json", file=sys.stderr)
    if plan:
        plan_command.build_afresh(path, **plan_options)


def _weights_on_disk(model: Path) -> int:
    """Bytes of a checkpoint file, or of the weights in a pipeline folder, text encoder and VAE decoder too."""
    if model.is_file():
        return model.stat().st_size
    parts = (list(part.glob("*.safetensors")) or list(part.glob("*.bin")) for part in model.iterdir() if part.is_dir())
    return sum(file.stat().st_size for files in parts for file in files)


@app.command()
def check(
    engine: Annotated[Path, typer.Argument(help="Engine file, .onnx.")],
    model: Annotated[str, typer.Argument(help="The model it was exported from: folder, hub id or checkpoint.")],
    vae: Annotated[str | None, typer.Option(metavar="FOLDER|ID", help="The VAE it was exported with.")] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FOLDER|ID", help="Configuration and tokenizer of a checkpoint file.")
    ] = None,
) -> None:
    """Hold an engine to PyTorch on a random frame. Exit status: 0 within bounds, 1 out of bounds, 2 bad usage."""
    with one_line_errors():
        from export.check.maps import check_engine

        checks = check_engine(engine, model, vae=vae, config=config)
    report(checks)
    raise typer.Exit(0 if all(c.passed for c in checks) else 1)


@app.command()
def quantize(
    engine: Annotated[Path, typer.Argument(help="Engine of precision fp32, .onnx.")],
    images: Annotated[
        list[str], typer.Option(help="Photographs: file, folder or glob; again for more. Every third judges.")
    ],
    output: Annotated[Path, typer.Option(help="Engine to write: engines/NAME gives engines/NAME.onnx.")],
    threshold: Annotated[float | None, typer.Option(help="KL threshold to compare at; the engine's own.")] = None,
) -> None:
    """Quantise convolutions and linear layers to int8; attention and softmax stay float32.

    Kept only if at least 95 % of the pixels of photographs not used for calibration keep their segment.
    Exit status: 0 done, 1 failed, 2 bad usage.
    """
    path = output if output.suffix == ".onnx" else output.with_name(output.name + ".onnx")
    with one_line_errors():
        from export.quantize import quantize_engine

        done = quantize_engine(engine, images, path, threshold=threshold)
    print(
        f"{done.layers} layers in int8; {done.agreement:.1%} of the pixels of {done.photographs} photographs keep "
        f"their segment; {done.gain:.2f} times as fast with {done.backend}\nwrote {path} and {path}.json",
        file=sys.stderr,
    )


@app.command("list")
def list_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, hub id or checkpoint file.")],
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Frame size; the model's own if left out.")] = None,
    attention: Annotated[str, typer.Option(help="U-Net blocks whose maps are used.")] = "down,mid,up",
    revision: Annotated[str | None, typer.Option(help="Revision on the model hub.")] = None,
    vae: Annotated[str | None, typer.Option(help="Another VAE, folder or hub id.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a checkpoint file: folder or hub id with its configs.")] = None,
) -> None:
    """Show what exporting a model would produce, from its configuration alone; nothing is written."""
    with one_line_errors(USAGE_ERROR):
        sides, blocks = _size(size), _blocks(attention)
    with one_line_errors():
        from export.describe import describe

        found = describe(model, sides, blocks, revision=revision, vae=vae, config=config)
    rows = {
        "model": f"{found.source} ({found.family})",
        "VAE": found.vae,
        "frame": f"{found.height}x{found.width}, multiples of {found.stride}; trained at {found.native_size}",
        "parameters": ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in found.parameters.items()),
        "thresholds": ", ".join(map(str, found.thresholds)),
    }
    for index, level in enumerate(found.levels):
        layers = f"mean of {level.layers} layer{'s' if level.layers > 1 else ''}"
        n = level.height * level.width
        rows["outputs" if not index else " " * index] = f"{level.output} [B, {n}, {n}], {layers}"
    for name, text in rows.items():
        print(f"{name:12}{text}")


def _parse(size: str | None, batch: str, timestep: int, threshold: str | None, attention: str) -> dict[str, Any]:
    """The options as `export_engine` takes them. Raises DiffSegError on the first that is out of range."""
    try:
        thresholds = None if threshold is None else tuple(float(word) for word in threshold.split(","))
    except ValueError:
        thresholds = ()
    if thresholds is not None and not (thresholds and all(0 < t < float("inf") for t in thresholds)):
        raise DiffSegError(f"--threshold: expected numbers above 0 with commas between them, found {threshold!r}")
    if batch != "dynamic" and not (batch.isdecimal() and int(batch) > 0):
        raise DiffSegError(f"--batch: expected a number above 0 or 'dynamic', found {batch!r}")
    if not 0 <= timestep < 1000:
        raise DiffSegError(f"--timestep: expected 0 to 999, found {timestep}")
    return {
        "blocks": _blocks(attention),
        "size": _size(size),
        "batch": None if batch == "dynamic" else int(batch),
        "timestep": timestep,
        "thresholds": thresholds,
    }


def _weights(text: str) -> str | tuple[float, ...]:
    """A rule's name, or `1,0,0,0` → numbers. Raises DiffSegError for anything else."""
    from runtime.pyramid.weights import check_weights

    try:
        return check_weights(text if text in ("proportional", "per-tensor") else text.split(","))
    except ValueError as error:
        raise DiffSegError(f"--{error}") from None


def _size(text: str | None) -> tuple[int, int] | None:
    """`512x768` or `512` → (height, width). Raises DiffSegError for anything else."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if not (len(sides) <= 2 and all(side.isdecimal() and int(side) > 0 for side in sides)):
        raise DiffSegError(f"--size: expected HxW in pixels such as 512x768, or one number, found {text!r}")
    return int(sides[0]), int(sides[-1])


def _blocks(text: str) -> tuple[str, ...]:
    """`down,up` → those of the U-Net's parts, in order. Raises DiffSegError for anything else."""
    blocks = {word.strip() for word in text.split(",")}
    if not blocks <= set(BLOCKS):
        raise DiffSegError(f"--attention: expected some of {','.join(BLOCKS)}, found {text!r}")
    return tuple(block for block in BLOCKS if block in blocks)


def report(checks: Sequence[OutputCheck | LabelsCheck]) -> None:
    """A table of the comparison with PyTorch, on stderr."""
    from rich.console import Console
    from rich.table import Table

    from export.check.labels import LabelsCheck
    from export.check.maps import OutputCheck

    table = Table(title="engine against PyTorch", box=None, pad_edge=False)
    for column in ("output", "worst", "mean", "row KL", "bound", "row sum", ""):
        table.add_column(column, justify="left" if column == "output" else "right", no_wrap=True)
    for check in checks:
        if isinstance(check, OutputCheck):
            figures = (check.worst, check.mean, check.divergence, check.bound, check.row_sum)
            table.add_row(check.output, *(f"{f:.1e}" for f in figures), "ok" if check.passed else "FAILED")
    Console(stderr=True).print(table)
    for check in checks:
        if isinstance(check, LabelsCheck):
            verdict = "FAILED" if not check.passed else "ok" if check.conclusive else "inconclusive"
            print(f"{check}: {verdict}", file=sys.stderr)


if __name__ == "__main__":
    run(app, "python -m export")

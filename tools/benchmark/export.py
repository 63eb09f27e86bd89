"""`python -m tools.benchmark export`: time, peak memory and parity of an export at full size."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.terminal import check_extra
from tools.benchmark.common import in_fresh_process, machine, say

SECONDS, PEAK_GB = 240.0, {"fp32": 12.0, "fp16": 7.0, "bf16": 7.0}


def export(
    model: Annotated[str, typer.Option(help="Diffusers folder; random weights in a published shape if left out.")] = "",
    family: Annotated[str, typer.Option(help="Shape of the random weights: sd15, sd21, sd21-v, sdxl.")] = "sd15",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16; with commas for several.")] = "fp32,fp16",
    head: Annotated[str, typer.Option(help="attention or labels.")] = "attention",
    vae: Annotated[str | None, typer.Option(help="Another VAE, folder or hub id.")] = None,
    check: Annotated[bool, typer.Option(help="Compare each engine with PyTorch.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Export at full size, stage by stage, each precision in a process of its own; then compare it with PyTorch.

    Exit 1: above the budget of time (without the check) or memory, or outside the parity bound.
    """
    check_extra("export")
    with tempfile.TemporaryDirectory() as folder:
        if not model:
            from tools.tiny.random_pipelines import save_random_pipeline

            say(f"writing random weights in the shape of {family} …")
            model = str(save_random_pipeline(Path(folder) / family, family))
        runs = []
        for name in precision.split(","):
            say(f"exporting {name} …")
            engine = str(Path(folder) / "engine.onnx")
            options = {"precision": name, "head": head, "vae": vae}
            run = in_fresh_process(measure_export, model, engine, options)
            if check:
                say(f"checking {name} …")
                run["checks"] = in_fresh_process(measure_check, model, engine)
            runs.append(run)
    report = {"machine": machine(), "model": Path(model).name, "head": head, "runs": runs}
    report["missed"] = [message for run in runs for message in _missed(run)]
    print(json.dumps(report)) if as_json else _print(report)
    raise typer.Exit(1 if report["missed"] else 0)


def measure_export(model: str, engine: str, options: dict[str, Any]) -> dict[str, Any]:
    """Export without the check. Returns seconds by stage, peak memory, arithmetic, parameters and size on disk."""
    from export.engine import ExportRequest, export_engine

    done = export_engine(ExportRequest(model=model, **options), Path(engine), check=False)
    files = Path(engine).parent.glob(Path(engine).name + "*")
    return {
        "precision": options["precision"],
        "stages": {stage.name: round(stage.seconds, 2) for stage in done.phases.done},
        "seconds": round(sum(stage.seconds for stage in done.phases.done), 1),
        "peak_gb": round(done.phases.done[-1].peak_memory / 1e9, 2),
        "before": {"parameters": done.before.parameters, "flops": done.before.flops},
        "after": {"parameters": done.after.parameters, "flops": done.after.flops},
        "engine_gb": round(sum(file.stat().st_size for file in files) / 1e9, 3),
    }


def measure_check(model: str, engine: str) -> list[dict[str, Any]]:
    """Compare an engine with PyTorch, output by output."""
    from export.check.maps import OutputCheck
    from export.parity import check_engine

    return [
        {"output": found.output, "row_kl": found.divergence, "bound": found.bound, "passed": found.passed}
        for found in check_engine(Path(engine), model)
        if isinstance(found, OutputCheck)
    ]


def _missed(run: dict[str, Any]) -> list[str]:
    name, missed = run["precision"], []
    if run["seconds"] > SECONDS:
        missed.append(f"{name}: {run['seconds']:.0f} s, allowed {SECONDS:.0f}")
    if run["peak_gb"] > PEAK_GB[name]:
        missed.append(f"{name}: {run['peak_gb']:.1f} GB, allowed {PEAK_GB[name]:.0f}")
    return missed + [
        f"{name}: {found['output']} off by {found['row_kl']:.1e}"
        for found in run.get("checks", [])
        if not found["passed"]
    ]


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"export of {report['model']}, {report['head']} head, {report['machine']['cpu']}", box=None)
    for column in ("precision", "stages, s", "total, s", "peak, GB", "engine, GB", "worst row KL"):
        table.add_column(column, justify="left" if column.startswith(("p", "s")) else "right")
    for run in report["runs"]:
        worst = max((found["row_kl"] for found in run.get("checks", [])), default=None)
        stages = ", ".join(f"{name} {seconds}" for name, seconds in run["stages"].items())
        table.add_row(
            run["precision"],
            stages,
            str(run["seconds"]),
            str(run["peak_gb"]),
            str(run["engine_gb"]),
            "not checked" if worst is None else f"{worst:.1e}",
        )
    console = Console()
    console.print(table)
    for when in ("before", "after"):
        cost = report["runs"][0][when]
        console.print(f"{when}: {cost['parameters'] / 1e6:.1f} M parameters, {cost['flops'] / 1e12:.3f} TFLOP a frame")
    console.print("\n".join(report["missed"]) or "within the budgets")

"""`python -m tools.benchmark plan`: time, peak memory and size of plans at full size."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.terminal import check_extra
from tools.benchmark.common import in_fresh_process, machine, say
from tools.benchmark.export import measure_export

SECONDS, PEAK_GB = 300.0, {"fp32": 12.0, "fp16": 8.0, "bf16": 8.0}


def plan(
    model: Annotated[str, typer.Option(help="Diffusers folder; random weights in a published shape if left out.")] = "",
    family: Annotated[str, typer.Option(help="Shape of the random weights: sd15, sd21, sd21-v, sdxl.")] = "sd15",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16; with commas for several.")] = "fp32,fp16,bf16",
    head: Annotated[str, typer.Option(help="attention or labels; with commas for both.")] = "attention,labels",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Export at full size and build a plan of each engine, each in a process of its own.

    Exit 1: above the budget of time or memory.
    """
    from export.plan.build import PlanRequest, check_request

    check_extra("export")
    check_request(PlanRequest())
    with tempfile.TemporaryDirectory() as folder:
        if not model:
            from tools.tiny.random_pipelines import save_random_pipeline

            say(f"writing random weights in the shape of {family} …")
            model = str(save_random_pipeline(Path(folder) / family, family, quick="float16"))
        runs = []
        for wanted in head.split(","):
            for name in precision.split(","):
                say(f"{wanted}, {name} …")
                runs.append(measure_plan(model, f"{folder}/engine.onnx", {"head": wanted, "precision": name}))
    report = {"machine": machine(), "model": Path(model).name, "runs": runs}
    report["missed"] = [message for run in runs for message in _missed(run)]
    print(json.dumps(report)) if as_json else _print(report)
    raise typer.Exit(1 if report["missed"] else 0)


def measure_plan(model: str, engine: str, options: dict[str, Any]) -> dict[str, Any]:
    """Export without the check, then build, each in a process of its own. Returns seconds, peak memory and sidecar."""
    exported = in_fresh_process(measure_export, model, engine, options)
    return {
        **options,
        "export_seconds": exported["seconds"],
        "export_peak_gb": exported["peak_gb"],
        "engine_gb": exported["engine_gb"],
        **in_fresh_process(measure_build, engine),
    }


def measure_build(engine: str) -> dict[str, Any]:
    """Build a plan beside an engine, as `python -m export plan` does."""
    from export.plan.build import PlanRequest, build_plan
    from export.progress import Phases

    path, phases = Path(engine), Phases()
    spec = build_plan(path, path.with_suffix(".plan"), PlanRequest(), phases)
    assert spec.plan is not None
    return {
        "plan_seconds": {stage.name: round(stage.seconds, 1) for stage in phases.done},
        "peak_gb": round(phases.done[-1].peak_memory / 1e9, 2),
        "plan_gb": round(spec.plan.size / 1e9, 3),
        "builder": f"{spec.plan.flavour} {spec.plan.version}",
        "arithmetic": spec.plan.arithmetic,
        "sidecar": json.loads(spec.to_json()),
    }


def _missed(run: dict[str, Any]) -> list[str]:
    name, missed = f"{run['head']}, {run['precision']}", []
    seconds = run["export_seconds"] + sum(run["plan_seconds"].values())
    if seconds > SECONDS:
        missed.append(f"{name}: {seconds:.0f} s, allowed {SECONDS:.0f}")
    if run["peak_gb"] > PEAK_GB[run["precision"]]:
        missed.append(f"{name}: {run['peak_gb']:.1f} GB, allowed {PEAK_GB[run['precision']]:.0f}")
    return missed


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"plans of {report['model']}, {report['runs'][0]['builder']}, {report['machine']['cpu']}"
    table = Table(title=title, box=None)
    for column in ("head", "precision", "export, s", "plan, s", "peak, GB", "plan, GB", "convolutions"):
        table.add_column(column, justify="left" if column in ("head", "precision", "convolutions") else "right")
    for run in report["runs"]:
        counted = ", ".join(f"{n} {kind}" for kind, n in run["arithmetic"]["convolution"].items())
        seconds = round(sum(run["plan_seconds"].values()), 1)
        figures = (run["export_seconds"], seconds, run["peak_gb"], run["plan_gb"], counted)
        table.add_row(run["head"], run["precision"], *map(str, figures))
    Console().print(table)
    print("\n".join(report["missed"]) or "within the budgets")

"""`python -m export plan ENGINE.onnx`: builds a TensorRT plan; `python -m export MODEL --plan` has the same options."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.engine.plan import OPTIMIZATION_LEVEL, WORKSPACE, build_options
from runtime.errors import DiffSegError
from runtime.terminal import USAGE_ERROR, fresh_process, one_line_errors

if TYPE_CHECKING:
    from export.plan.build import PlanRequest
    from runtime.engine.spec import EngineSpec

Flavour = Annotated[
    str | None,
    typer.Option(metavar="tensorrt|tensorrt_rtx", help="Library that builds; the installed one if left out."),
]
OptimizationLevel = Annotated[int, typer.Option(min=0, max=5, help="How long the builder searches.")]
Workspace = Annotated[
    int, typer.Option(min=1, metavar="MB", help="Most memory of a layer, without its inputs and outputs.")
]
Profile = Annotated[
    str | None,
    typer.Option(metavar="LEAST,BEST,MOST", help="Frames per call, of a dynamic batch.  [default: 1,1,4]"),
]
VersionCompatible = Annotated[
    bool, typer.Option("--version-compatible", help="Also run with newer versions of TensorRT; may be slower.")
]
HardwareCompatible = Annotated[
    bool, typer.Option("--hardware-compatible", help="Run on all GPUs from Ampere on; may be slower.")
]
Tf32 = Annotated[bool, typer.Option("--tf32", help="Let float32 products round to TF32: faster, 10 bits of mantissa.")]
Targets = Annotated[
    str | None,
    typer.Option(
        metavar="8.6,12.0", help="Compute capabilities that TensorRT-RTX builds for; its default if left out."
    ),
]


def plan(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE.onnx", help="An exported ONNX engine.")],
    output: Annotated[Path | None, typer.Option(help="Plan to write; ENGINE.plan if left out.")] = None,
    flavour: Flavour = None,
    optimization_level: OptimizationLevel = OPTIMIZATION_LEVEL,
    workspace: Workspace = WORKSPACE,
    profile: Profile = None,
    version_compatible: VersionCompatible = False,
    hardware_compatible: HardwareCompatible = False,
    tf32: Tf32 = False,
    targets: Targets = None,
) -> None:
    """Build a TensorRT or TensorRT-RTX plan from an ONNX engine, with its sidecar.

    Precision is the engine's own. Exit status: 0 done, 1 failed, 2 bad usage.
    """
    with one_line_errors(USAGE_ERROR):
        request = plan_request(
            flavour, optimization_level, workspace, profile, version_compatible, hardware_compatible, tf32, targets
        )
    with one_line_errors():
        write_plan(engine, output or engine.with_suffix(".plan"), request)


def plan_request(
    flavour: str | None,
    optimization_level: int,
    workspace: int,
    profile: str | None,
    version_compatible: bool,
    hardware_compatible: bool,
    tf32: bool,
    targets: str | None,
) -> PlanRequest:
    """The options as `export.plan.build` takes them. Raises DiffSegError for the first invalid one, before any work."""
    from export.plan.build import PlanRequest, check_request

    batch = None
    if profile is not None:
        words = profile.split(",")
        if len(words) != 3 or not all(word.strip().isdecimal() for word in words):
            raise DiffSegError(f"--profile: expected least,best,most frames per call, such as 1,1,4, found {profile!r}")
        least, best, most = map(int, words)
        batch = (least, best, most)
    request = PlanRequest(
        flavour=flavour,
        optimization_level=optimization_level,
        workspace=workspace * 2**20,
        profile=batch,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        tf32=tf32,
        targets=tuple(word.strip() for word in targets.split(",")) if targets else None,
    )
    check_request(request)
    return request


def build_afresh(engine: Path, **options: Any) -> None:
    """Replace this process by `python -m export plan` for `engine`; `options` are those of `plan_request`.

    PyTorch does not return its memory to the system, and a builder in the same process would need as much again.
    """
    command = fresh_process("export", "plan", str(engine), *build_options(**options))
    if os.name == "posix":
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(command[0], command)
    # With execv, Windows would return to the terminal before the plan is built.
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def write_plan(engine: Path, output: Path, request: PlanRequest) -> EngineSpec:
    """Build, and report on stderr what was built. Raises what `build_plan` raises."""
    from export.plan.build import build_plan
    from export.progress import Phases
    from runtime.engine.plan import FLAVOURS

    path = output if output.suffix == ".plan" else output.with_name(output.name + ".plan")
    phases = Phases()
    spec = build_plan(engine, path, request, phases)
    found = spec.plan
    assert found is not None
    counted = "; ".join(
        f"{kind.replace('_', ' ')}: {', '.join(f'{n} {name}' for name, n in count.items())}"
        for kind, count in found.arithmetic.items()
    )
    where = found.gpu or "no GPU: what needs one was not checked"
    print(
        f"{phases}\n{FLAVOURS[found.flavour]} {found.version} ({where}), {found.size / 1e6:.1f} MB; {counted}\n"
        f"wrote {path} and {path}.json",
        file=sys.stderr,
    )
    return spec

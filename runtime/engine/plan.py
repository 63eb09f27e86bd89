"""Checks of a plan before it is deserialised: its sidecar against the file, the library and the GPU.

TensorRT itself says little more than "could not deserialize". So everything that can be known is checked first, and
each error names what was expected, what was found, and the command that builds the plan again. Nothing here needs
TensorRT or a GPU.
"""

import hashlib
import logging
import os
import shlex
from pathlib import Path

from runtime.engine.plan_info import PlanInfo
from runtime.engine.spec import EngineSpec, sidecar_path
from runtime.errors import DiffSegError
from runtime.files import read_small_text

FLAVOURS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}  # module → its name for people
OPTIMIZATION_LEVEL, WORKSPACE = 3, 4096  # the builder's defaults; the workspace in MB
DEFAULTS = {"optimization_level": OPTIMIZATION_LEVEL, "workspace": WORKSPACE}
NEXT_MAJOR = {8: 10, 10: 11}  # TensorRT: which later major runs a version-compatible plan of the other; there was no 9
OLDEST = (8, 0)  # least compute capability of hardware-compatible plans, and of TensorRT-RTX without other targets


def read_plan(path: Path) -> tuple[EngineSpec, PlanInfo]:
    """The description in a plan's sidecar.

    Raises DiffSegError when the sidecar is missing or belongs to another file, or when the plan has another size.
    """
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        raise DiffSegError(
            f"{path} has no sidecar: expected {sidecar.name} beside it, which says what the plan is; "
            f"copy it too, or build the plan again with {rebuild(path)}"
        )
    try:
        spec = EngineSpec.from_json(read_small_text(sidecar), str(sidecar))
    except DiffSegError as error:  # its advice, to export again, is for ONNX engines
        found = str(error).rpartition("; ")[0] or str(error)
        raise DiffSegError(
            f"{found}; copy the plan's own sidecar, or build the plan again with {rebuild(path)}"
        ) from None
    plan = spec.plan
    if plan is None or plan.flavour not in FLAVOURS:
        found = "an ONNX engine" if plan is None else f"a plan of {plan.flavour!r}"
        raise DiffSegError(
            f"{sidecar} describes {found}; expected a plan of {' or '.join(FLAVOURS)}; copy the plan's own sidecar, or "
            f"build the plan again with {rebuild(path)}"
        )
    size = path.stat().st_size
    if size != plan.size:
        wrong = "the plan is cut short" if size < plan.size else "the two come from different builds"
        raise DiffSegError(
            f"{path} has {size} bytes, its sidecar names {plan.size}: {wrong}; copy both again, or build the plan "
            f"again with {rebuild(path, plan)}"
        )
    return spec, plan


def check_library(path: Path, plan: PlanInfo, version: str) -> None:
    """Compare a plan with the `version` of the installed library.

    Raises DiffSegError unless that version built the plan, or the plan is version-compatible and the version newer, of
    the same major or of the one that TensorRT names as compatible.
    """
    built, here = _numbers(plan.version), _numbers(version)
    majors = [built[0]] + ([NEXT_MAJOR[built[0]]] if built[0] in NEXT_MAJOR else [])
    if version == plan.version or (plan.version_compatible and here >= built and here[0] in majors):
        return
    name, extra = FLAVOURS[plan.flavour], ""
    if plan.version_compatible:
        extra = f" or newer of major {' or '.join(map(str, majors))}"
    raise DiffSegError(
        f"{path} was built with {name} {plan.version} and runs only with that version{extra}; found {name} {version}; "
        f"build it again with {rebuild(path, plan)}, or pip install {plan.flavour.replace('_', '-')}=={plan.version}"
    )


def check_gpu(path: Path, plan: PlanInfo, name: str, capability: str) -> None:
    """Compare a plan with the GPU that is to run it, by its name and compute capability ("8.9").

    Raises DiffSegError when the plan cannot run there. Logs a warning when it can, but was tuned for another card.
    """
    here = _numbers(capability)
    if plan.flavour == "tensorrt_rtx" or plan.hardware_compatible:
        oldest = min(map(_numbers, plan.targets)) if plan.targets else OLDEST
        fits, expected = here >= oldest, f"compute capability {'.'.join(map(str, oldest))} or newer"
    else:
        fits = plan.compute_capability in (None, capability)
        expected = f"compute capability {plan.compute_capability} ({plan.gpu})"
    if not fits:
        raise DiffSegError(
            f"{path} is for GPUs of {expected}; found {name} of {capability}; build it again on this machine with "
            f"{rebuild(path, plan)}"
        )
    if plan.flavour == "tensorrt" and plan.gpu not in (None, name) and not plan.hardware_compatible:
        logging.getLogger("diffseg").warning(
            "%s was built on %s and runs on %s: it may be slower than one that is built here with %s",
            *(path, plan.gpu, name, rebuild(path, plan)),
        )


def check_platform(path: Path, plan: PlanInfo, platform: str) -> None:
    """Raise DiffSegError when a plan of TensorRT was built on another system or processor.

    `platform`: of this machine, "linux x86_64". Plans of TensorRT-RTX run on any.
    """
    if plan.flavour == "tensorrt" and plan.platform != platform:
        raise DiffSegError(
            f"{path} was built on {plan.platform} and runs only there; found {platform}; build it again with "
            f"{rebuild(path, plan)}"
        )


def check_content(path: Path, plan: PlanInfo, content: "bytes | memoryview") -> None:
    """Raise DiffSegError unless the file's content has the SHA-256 in the sidecar."""
    found = hashlib.sha256(content).hexdigest()
    if found != plan.sha256:
        raise DiffSegError(
            f"{path} is damaged, or its sidecar belongs to another plan: expected SHA-256 {plan.sha256[:16]}…, found "
            f"{found[:16]}…; copy both again, or build the plan again with {rebuild(path, plan)}"
        )


def rebuild(path: Path, plan: PlanInfo | None = None) -> str:
    """The command that builds a plan again, in quotes for a message, with the old one's options where known."""
    engine, options = path.with_suffix(".onnx"), []
    if plan is not None:
        if plan.engine is not None:
            built = Path(os.path.normpath(path.parent / plan.engine))
            # Plan and engine may have been copied to another place, into one folder.
            engine = built if built.is_file() else path.with_name(built.name)
        options = build_options(
            flavour=plan.flavour,
            optimization_level=plan.optimization_level,
            workspace=plan.workspace // 2**20,
            profile=",".join(map(str, plan.batch)) if plan.batch else None,
            version_compatible=plan.version_compatible,
            hardware_compatible=plan.hardware_compatible,
            tf32=plan.tf32,
            targets=",".join(plan.targets) if plan.targets else None,
        )
    if engine.with_suffix(".plan") != path:
        options += ["--output", str(path)]
    return f"'{shlex.join(['python', '-m', 'export', 'plan', str(engine), *options])}'"


def build_options(**options: str | int | None) -> list[str]:
    """Words of the command line `python -m export plan` for options by name, without those at their defaults.

    `workspace` is in MB.
    """
    words: list[str] = []
    for name, value in options.items():
        if value is None or value is False or value == DEFAULTS.get(name):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(str(value))
    return words


def _numbers(version: str) -> tuple[int, ...]:
    """`10.13.3.9` → (10, 13, 3, 9); words in it count as 0."""
    return tuple(int(word) if word.isdecimal() else 0 for word in version.split("."))

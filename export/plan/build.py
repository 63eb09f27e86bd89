"""ONNX engine → plan, with TensorRT 10 or 11 or with TensorRT-RTX, whose builders are nearly the same.

Needs neither PyTorch nor onnx, so that a plan can be built on the device that will run it.
"""

import contextlib
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.plan.progress import BuildMonitor
from export.plan.types import check_network, inspect_plan, precision_doubt
from export.progress import Phases
from runtime.engine.backends.tensorrt_library import build_platform, import_flavour, make_logger, start
from runtime.engine.onnx_file import read_engine
from runtime.engine.plan import FLAVOURS, OPTIMIZATION_LEVEL, WORKSPACE
from runtime.engine.plan_info import PlanInfo
from runtime.engine.spec import EngineSpec, sidecar_path
from runtime.errors import DiffSegError
from runtime.files import cache_folder, write_atomically
from runtime.gpu.probe import check_driver

EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
OLDEST = 10  # TensorRT's first major version with strongly typed plans of all types from uint8 to bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What the builder must do.

    `flavour`: tensorrt or tensorrt_rtx, None for the one that is installed. `optimization_level`: 0 to 5. `workspace`:
    most bytes that a layer may use, without its inputs and outputs. `profile`: least, best and most frames per call of
    an engine with dynamic batch. `version_compatible`: also run with newer versions of TensorRT. `hardware_compatible`:
    run on all GPUs since Ampere. `tf32`: let float32 products round to TF32. `targets`: compute capabilities, "8.6",
    that TensorRT-RTX builds for; None for its default. `device`: number of the GPU that builds, if one is needed.
    """

    flavour: str | None = None
    optimization_level: int = OPTIMIZATION_LEVEL
    workspace: int = WORKSPACE * 2**20
    profile: tuple[int, int, int] | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    tf32: bool = False
    targets: tuple[str, ...] | None = None
    device: int = 0


def check_request(request: PlanRequest) -> str:
    """Choose the flavour by what is installed, without any heavy import.

    Raises DiffSegError when no flavour is installed, the requested one is not, it does not have the requested options,
    or it needs a GPU and there is none.
    """
    installed = [name for name in FLAVOURS if importlib.util.find_spec(name) is not None]
    wanted = request.flavour
    if wanted not in (None, *FLAVOURS):
        raise DiffSegError(f"--flavour: expected {' or '.join(FLAVOURS)}, found {wanted!r}")
    if not installed or wanted not in (None, *installed):
        needed = [wanted] if wanted else list(FLAVOURS)
        pips = " or ".join(f"pip install 'diffseg[{EXTRAS[name]}]'" for name in needed)
        if platform.machine() == "aarch64" and "tensorrt" in needed:
            pips += " (on Jetson JetPack brings TensorRT: make the virtual environment with --system-site-packages)"
        found = f"only {installed[0]} is" if installed else "it is not"
        raise DiffSegError(f"building a plan needs the package {' or '.join(needed)}; {found} installed; {pips}")
    flavour = wanted or installed[0]
    if not 0 <= request.optimization_level <= 5:
        raise DiffSegError(f"--optimization-level: expected 0 to 5, found {request.optimization_level}")
    if flavour == "tensorrt_rtx":
        for option, given in (
            ("--version-compatible", request.version_compatible),
            ("--hardware-compatible", request.hardware_compatible),
        ):
            if given:
                raise DiffSegError(
                    f"{option}: TensorRT-RTX has none: its plans run on all RTX GPUs since Ampere, with the version "
                    "that built them; leave it out, or use --flavour tensorrt"
                )
        return flavour
    if request.targets:
        raise DiffSegError("--targets goes with --flavour tensorrt_rtx; TensorRT builds for the GPU it runs on")
    try:
        check_driver()
    except DiffSegError as error:
        raise DiffSegError(
            f"TensorRT builds a plan on the GPU that will run it: {error}; TensorRT-RTX (pip install 'diffseg[rtx]', "
            "--flavour tensorrt_rtx) builds without one"
        ) from None
    return flavour


def build_plan(engine: Path, output: Path, request: PlanRequest, phases: Phases) -> EngineSpec:
    """Build the ONNX engine `engine` into the plan `output` with its sidecar; nothing is written unless that succeeds.

    Returns what the sidecar says. Raises DiffSegError when the engine cannot be read, the request does not fit it, or
    TensorRT refuses; KeyboardInterrupt, between two steps of the builder, on Ctrl-C.
    """
    flavour = check_request(request)
    spec = read_engine(engine)
    batch = _profile(spec, request.profile)
    for target in (output, sidecar_path(output)):
        if target.is_dir():
            raise DiffSegError(f"{target} is a folder; expected a file or nothing there, choose another --output")
    _check_room(engine, output)
    began = time.perf_counter()
    with phases("import"):
        trt = import_flavour(flavour)
    if flavour == "tensorrt" and int(trt.__version__.split(".")[0]) < OLDEST:
        raise DiffSegError(
            f"expected TensorRT {OLDEST} or newer, found {trt.__version__}; pip install 'diffseg[tensorrt]'"
        )
    card = _card(request.device)
    words: list[str] = []
    logger = make_logger(trt, words)
    builder = start(trt.Builder, logger, words)
    # TensorRT 10 needs a flag for strongly typed networks; TensorRT 11 has no others and may drop the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)  # the network must live as long as its parser
    with phases("parse"):
        if not parser.parse_from_file(str(engine)):
            errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise DiffSegError(
                f"{FLAVOURS[flavour]} {trt.__version__} cannot parse {engine}{_said(errors[:1] or words)}"
            )
    types, arithmetic = check_network(trt, network, spec, engine)
    config = _configure(trt, builder, flavour, request, batch, spec)
    cache = timings = None
    if flavour == "tensorrt" and card is not None:
        named = "".join(letter if letter.isalnum() else "-" for letter in card.name)
        cache = cache_folder() / f"timing-{trt.__version__}-{named}-{card.capability}.cache"
        timings = _use_timings(config, cache)  # TensorRT keeps no reference, and reads it until the plan is built
        words.clear()  # a damaged cache is not the cause of later errors
    monitor = BuildMonitor(trt)
    config.progress_monitor = monitor.listener
    with phases("build"), monitor:
        content = builder.build_serialized_network(network, config)
    if content is None:
        raise DiffSegError(
            f"{FLAVOURS[flavour]} {trt.__version__} cannot build {engine}{_said(words[-1:])}; if memory is short, use "
            "a smaller --workspace, --size or --profile"
        )
    if cache is not None and timings is not None:
        with contextlib.suppress(OSError):  # without it, the next build is only slower
            write_atomically(cache, bytes(timings.serialize()))
    inspected = None
    if card:
        with contextlib.suppress(Exception):  # a finished plan is not lost by a look at it
            inspected = inspect_plan(trt, logger, memoryview(content), request.version_compatible)
    doubt = precision_doubt(inspected, spec.precision)
    if doubt:
        logging.getLogger("diffseg").warning("%s: %s", output, doubt)
    with phases("write"):
        data = memoryview(content)
        info = PlanInfo(
            flavour=flavour,
            version=trt.__version__,
            sha256=hashlib.sha256(data).hexdigest(),
            size=data.nbytes,
            platform=build_platform(),
            gpu=card and card.name,
            compute_capability=card and card.capability,
            optimization_level=request.optimization_level,
            workspace=request.workspace,
            types=types,
            arithmetic=arithmetic,
            seconds=round(time.perf_counter() - began, 1),
            tf32=request.tf32,
            targets=request.targets,
            version_compatible=request.version_compatible,
            hardware_compatible=request.hardware_compatible,
            batch=batch,
            engine=_seen_from(output.parent, engine),
            inspected=inspected,
            warnings=(doubt,) if doubt else (),
        )
        described = replace(spec, plan=info)
        try:
            write_atomically(output, data)
            write_atomically(sidecar_path(output), described.to_json().encode())
        except OSError as error:
            raise DiffSegError(f"cannot write {output}: {error.strerror or error}; free some space") from None
    return described


def _check_room(engine: Path, output: Path) -> None:
    """Raise DiffSegError, before minutes of building, if the disk has no room for a plan as large as the engine."""
    files = (engine, engine.with_name(f"{engine.name}.data"))
    needed = sum(file.stat().st_size for file in files if file.is_file())
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            free = shutil.disk_usage(output.parent).free
    except OSError as error:
        raise DiffSegError(f"cannot write into {output.parent} ({error.strerror}); choose another --output") from None
    if free < needed:
        raise DiffSegError(
            f"the disk of {output.parent} has {free / 1e6:.0f} MB left, the plan needs about {needed / 1e6:.0f} MB; "
            "free some space or choose another --output"
        )


def _profile(spec: EngineSpec, asked: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
    """Least, best and most frames per call; None for a fixed batch. Raises DiffSegError if `asked` does not fit."""
    if spec.batch is not None:
        if asked is not None:
            raise DiffSegError(
                f"--profile: this engine takes {spec.batch} frame{'s'[: spec.batch > 1]} per call; export it with "
                "--batch dynamic, or leave the option out"
            )
        return None
    least, best, most = asked or (1, 1, 4)
    if not 1 <= least <= best <= most:
        raise DiffSegError(f"--profile: expected least,best,most frames per call, such as 1,1,4, found {asked}")
    return least, best, most


def _configure(
    trt: Any,
    builder: Any,
    flavour: str,
    request: PlanRequest,
    batch: tuple[int, int, int] | None,
    spec: EngineSpec,
) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace)
    config.builder_optimization_level = request.optimization_level
    if not request.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if flavour == "tensorrt":
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector needs it to tell the types
    if request.targets:
        known = trt.ComputeCapability.__members__
        names = ["SM" + target.replace(".", "") for target in request.targets]
        if not set(names) <= set(known):
            listed = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in known if name.startswith("SM"))
            raise DiffSegError(f"--targets: expected some of {listed}, found {','.join(request.targets)}")
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(known[name], index)
    if batch is not None:
        profile = builder.create_optimization_profile()
        profile.set_shape("frame", *(spec.frame_input.shape(frames, spec.height, spec.width) for frames in batch))
        config.add_optimization_profile(profile)
    return config


def _seen_from(folder: Path, engine: Path) -> str:
    with contextlib.suppress(ValueError):  # on another drive of Windows
        return Path(os.path.relpath(engine, folder)).as_posix()
    return str(engine.resolve())


def _use_timings(config: Any, path: Path) -> Any:
    """The timing cache of earlier builds, or a new one if TensorRT does not accept it; None if it accepts neither."""
    kept = b""
    with contextlib.suppress(OSError):
        kept = path.read_bytes()
    for content in (kept, b"") if kept else (b"",):
        timings = config.create_timing_cache(content)
        if timings is not None and config.set_timing_cache(timings, False):
            return timings
    return None


def _card(device: int) -> Any:
    """The GPU that builds, or None without a driver, because any CUDA call could crash then."""
    try:
        check_driver()
    except DiffSegError:
        return None
    from runtime.gpu import driver as cuda

    card = cuda.gpu(device)
    card.use()
    return card


def _said(words: Sequence[str]) -> str:
    return f" ({' '.join(words[-1].split())[:400]})" if words else ""

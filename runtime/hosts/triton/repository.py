"""A model's folder in a model repository: the engine, how Triton runs it, and `config.pbtxt`."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime import __version__
from runtime.engine.external import external_data
from runtime.engine.heads import HEADS
from runtime.engine.plan import FLAVOURS, check_content, read_plan
from runtime.engine.registry import engine_path
from runtime.engine.spec import sidecar_path
from runtime.engine.wire import field
from runtime.errors import DiffSegError
from runtime.files import new_folder
from runtime.hosts.triton.config import THRESHOLDS, graph_config, python_config
from runtime.hosts.triton.pbtxt import to_text
from runtime.options import default_config, label_type, settle_options, thresholds_of
from runtime.refine.registry import DEFAULT_PIECES
from runtime.segmenter import Segmenter

if TYPE_CHECKING:
    from runtime.engine.spec import EngineSpec
    from runtime.pyramid.config import MergeConfig
    from runtime.refine.refinement import Refinement

BACKENDS = ("auto", "python", "onnxruntime", "tensorrt")
VERSION = "1"
MOST = 8  # frames that Triton gives a model together
# Parts of the names of files that Triton loads as code: its Python has the model's folder in its path, and a library
# there goes before Triton's own backend.
_CODE = {"py", "pyc", "pyd", "so", "dll", "dylib"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
MODEL = f'''"""The model that Triton's Python backend runs. Written by diffseg {__version__}."""

import triton_python_backend_utils

try:
    from runtime.hosts.triton.model import Model
except ImportError as error:
    raise RuntimeError(  # Triton's own exceptions are not there yet
        f"this model needs the package diffseg in the Python that Triton runs ({{error}}); install it there with pip"
    ) from None


class TritonPythonModel(Model):
    triton = triton_python_backend_utils
'''


@dataclass(frozen=True, slots=True)
class Wish:
    """What a model is to be.

    Attributes:
        engine: the file; "tiny" for the embedded one.
        name: of the model; None: the file's, without its suffix.
        backend: one of BACKENDS; auto: Triton's own for an engine with the head labels that they can run, else python.
        device: auto, cpu, cuda or cuda:N.
        most: frames that Triton may run together; None: MOST where the engine takes any number, 0 for none.
        threshold, refine, min_area, pieces, threads: as of `diffseg segment`; None or 0 where they are not given.
    """

    engine: Path
    name: str | None = None
    backend: str = "auto"
    device: str = "auto"
    most: int | None = None
    threshold: str | None = None
    refine: str = "none"
    min_area: float = 0
    pieces: str | None = None
    threads: int | None = None


class Written(NamedTuple):
    """A model's folder, the backend that runs it, and what people should know; "" for nothing."""

    folder: Path
    backend: str
    note: str


def write_model(wish: Wish, output: Path) -> Written:
    """Write a model's folder into the model repository `output`.

    Raises DiffSegError, and writes nothing, where the engine or an option is invalid or the folder exists; OSError
    where it cannot be written.
    """
    path = engine_path(wish.engine)
    name = wish.name or path.stem
    if not _NAME.fullmatch(name):
        raise DiffSegError(
            f"--name: expected letters, digits, '.', '_' and '-', found {name[:80]!r}; choose a name for the model"
        )
    if wish.backend not in BACKENDS:
        raise DiffSegError(f"--backend: expected one of {', '.join(BACKENDS)}, found {wish.backend!r}")
    spec, config, refinement = _read(path, wish)
    backend = _backend(path, spec, wish)
    most = _most(path, spec, backend, wish)
    if backend == "python":
        engine = path.name
        labels, told = label_type(config, refinement), _told(engine, wish)
        message = python_config(name, spec, config, labels, device=wish.device, most=most, parameters=told)
    else:
        engine = f"model{path.suffix.lower()}"
        threads = {} if wish.threads is None else {"intra_op_thread_count": str(wish.threads)}
        message = graph_config(name, spec, _types(spec), device=wish.device, most=most, parameters=threads)
    with new_folder(output / name) as part:
        version = part / VERSION
        version.mkdir()
        _copy_engine(path, version / engine, {engine, sidecar_path(version / engine).name, "model.py"})
        if backend == "python":
            (version / "model.py").write_text(MODEL)
        elif backend == "onnxruntime":
            with (version / engine).open("ab") as file:
                file.write(_default_thresholds(config.thresholds))
        else:
            (part / "warmup").mkdir()
            for each in HEADS[spec.head].inputs:
                (part / "warmup" / each.name).write_bytes(_floats(each.default(spec)))
        (part / "config.pbtxt").write_text(to_text(message), "utf-8")
    note = "" if most else f"Triton runs each request by itself: {_why_alone(spec)}"
    return Written(output / name, backend, note)


def _read(path: Path, wish: Wish) -> tuple[EngineSpec, MergeConfig, Refinement]:
    """The description of an engine, how it merges and what follows.

    An ONNX engine is opened. A plan need not run on this machine, and its library need not be installed. Raises
    DiffSegError where it or an option is invalid.
    """
    given: dict[str, Any] = {
        "thresholds": thresholds_of(wish.threshold),
        "refine": wish.refine,
        "min_area": wish.min_area,
        "pieces": wish.pieces or DEFAULT_PIECES,
    }
    if path.suffix.lower() != ".plan" or not path.is_file():
        options = {"threads": wish.threads}
        with Segmenter.open(path, "cpu", options=options, **given) as segmenter:
            return segmenter.engine.spec, segmenter.config, segmenter.stages.refinement
    if wish.device == "cpu":
        raise DiffSegError("--device: a plan runs on GPUs only, found cpu; leave it out, or give an .onnx")
    if wish.threads is not None:
        raise DiffSegError("--threads: are those of a CPU, and a plan runs on GPUs only; leave it out")
    spec, plan = read_plan(path)
    check_content(path, plan, path.read_bytes())
    config = default_config(spec)
    return spec, *settle_options(config, **given)[:2]


def _backend(path: Path, spec: EngineSpec, wish: Wish) -> str:
    """The backend to run an engine. Raises DiffSegError where the one that is asked for cannot."""
    own = "onnxruntime" if spec.plan is None else "tensorrt"
    cannot = ""
    if HEADS[spec.head].route != "labels":
        cannot = f"the head {spec.head} gives no labels by itself"
    elif spec.plan is not None and spec.plan.flavour != "tensorrt":
        cannot = f"it is a plan of {FLAVOURS[spec.plan.flavour]}"
    elif spec.plan is None and spec.precision == "bf16":
        cannot = "ONNX Runtime runs no bf16 engine"
    elif wish.refine != "none" or wish.min_area or wish.pieces in ("split", "unlike") or wish.threshold == "auto":
        cannot = "--refine, --min-area, --pieces split or unlike, and --threshold auto need the runtime"
    if wish.backend == "python" or (wish.backend == "auto" and cannot):
        return "python"
    if wish.backend not in ("auto", own):
        cannot = f"it is for the backend {own}"
    if cannot:
        raise DiffSegError(
            f"--backend {wish.backend} cannot run {path.name}: {cannot}; leave --backend out, or give python"
        )
    return own


def _most(path: Path, spec: EngineSpec, backend: str, wish: Wish) -> int:
    """How many frames Triton may give a model together; 0: it runs each request by itself."""
    able = backend == "python" or (spec.plan is None and spec.batch is None)
    most = (MOST if able else 0) if wish.most is None else wish.most
    if most and not able:
        raise DiffSegError(
            f"--max-batch: expected 0, since {path.name} cannot be batched by Triton: {_why_alone(spec)}; or --backend "
            "python, which can"
        )
    if not most and backend == "python":
        raise DiffSegError("--max-batch: expected 1 or more for the backend python, found 0")
    if backend == "tensorrt" and wish.threshold is not None:
        raise DiffSegError(
            f"--threshold: each request of {path.name} brings its own thresholds; leave it out, or --backend python"
        )
    return most


def _why_alone(spec: EngineSpec) -> str:
    if spec.plan is not None:
        return "a plan takes thresholds with every request"
    if spec.batch is not None:
        return f"the engine takes exactly {spec.batch} at once; export it with --batch dynamic"
    return "--max-batch is 0"


def _told(engine: str, wish: Wish) -> dict[str, str]:
    """What the model reads when Triton loads it."""
    given = {"threshold": wish.threshold, "refine": wish.refine, "min_area": wish.min_area}
    given |= {"pieces": wish.pieces, "threads": wish.threads}
    return {"engine": engine} | {name: str(value) for name, value in given.items() if value not in (None, "none", 0)}


def _types(spec: EngineSpec) -> dict[str, str]:
    """The types of the outputs of a graph with the head labels."""
    if spec.plan is not None:
        return dict(spec.plan.types)
    labels = "uint8" if spec.grid**2 <= 256 else "int32"
    return {"labels": labels, "segments": "int32", **dict.fromkeys(spec.word_outputs, "float32")}


def _copy_engine(path: Path, target: Path, taken: set[str]) -> None:
    """Copy an engine, its sidecar, and the files beside it that have its weights.

    `taken`: names of other files. Raises DiffSegError where weights have one of them, or that of a program.
    """
    shutil.copyfile(path, target)
    if sidecar_path(path).is_file():
        shutil.copyfile(sidecar_path(path), sidecar_path(target))
    for name in external_data(path) if path.suffix.lower() == ".onnx" else ():
        weights = target.parent / name
        if str(Path(name)).lower() in map(str.lower, taken) or _CODE & {*name.lower().split(".")}:
            raise DiffSegError(
                f"{path.name} has weights in {name[:200]!r}, which Triton would take for another file or for a "
                "program; do not use this engine unless you know who made it, or export it again"
            )
        weights.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / name, weights)


def _floats(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def _default_thresholds(values: Sequence[float]) -> bytes:
    """What makes the input `thresholds` of an ONNX file one that may be left out, with these values.

    In Triton's batches each input has as many rows as there are frames, but the graph takes one set of thresholds: they
    must be left out there. ONNX takes an input that has an initializer as one with a default. Protobuf joins a message
    with what is appended to it: here a model whose graph has the initializer alone (fields of onnx.proto: model.graph
    7, graph.initializer 5; of a tensor dims 1, data_type 2, where 1 is float32, name 8, raw_data 9).
    """
    tensor = field(1, len(values)) + field(2, 1) + field(8, THRESHOLDS) + field(9, _floats(values))
    return field(7, field(5, tensor))

"""The description of an engine: the same fields in the ONNX metadata and in the sidecar `<engine>.json`."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from runtime.engine import fields as checked
from runtime.engine.heads import HEADS
from runtime.engine.inputs import DEFAULT_INPUT, FRAME_INPUTS, FrameInput
from runtime.engine.plan_info import PlanInfo
from runtime.errors import DiffSegError
from runtime.files import read_small_text

SCHEMA = 1  # version of the fields; a runtime reads one version
METADATA_KEY = "diffseg"  # of the entry in the ONNX metadata


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the pyramid: an attention map over `height` × `width` tokens, mean of `layers` layers."""

    height: int
    width: int
    layers: int

    @property
    def output(self) -> str:
        """Name of the engine's output that carries this level."""
        return f"attention_{self.height}x{self.width}"

    @property
    def word_output(self) -> str:
        """Name of the output with the words' maps of this resolution, of an engine with words."""
        return f"words_{self.height}x{self.width}"


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything the runtime must know about an engine before it runs it.

    Attributes:
        source, revision: the model that was exported: a folder or a repository's name, and its revision.
        head: a name in `runtime.engine.heads.HEADS`.
        height, width: size in pixels of the frame that the graph takes.
        batch: frames per call; None for a dynamic batch.
        levels: the pyramid, finest first; with the head `features` the grid of the features alone.
        timestep, prompt: of the one pass through the U-Net; constants of the graph.
        precision: of the arithmetic: fp32, fp16 or bf16.
        storage: of the weights in the file: fp32, fp16 or bf16.
        latent_scaling: factor between the VAE's latent and the U-Net's input.
        blocks: the parts of the U-Net whose attention is read: down, mid, up.
        thresholds, grid, weights, solver: the engine's defaults for the merge. With the head `labels`, the grid, the
            weights, the solver and the number of thresholds are part of the graph.
        auto: segments are chosen with the threshold "auto" where none is asked for; levels, tiles, warm starts, other
            solvers and labels in a graph take `thresholds`.
        noise_seed: of the noise in the latent; None for no noise.
        channels: numbers per token, of the head `features`; None for other heads.
        vae: the autoencoder that replaced the model's own; None for the model's own.
        target: what the attention in the graph is written for: gpu or cpu.
        words: those whose maps the engine also gives, in the order of the maps; empty for none.
        input: how the graph takes a frame: a name in `runtime.engine.inputs.FRAME_INPUTS`.
        producer: versions of the programs that wrote the file, by name.
        schema: version of these fields.
        plan: what only a plan has; None for an ONNX engine.
    """

    source: str
    revision: str | None
    head: str
    height: int
    width: int
    batch: int | None
    levels: tuple[Level, ...]
    timestep: int
    prompt: str
    precision: str
    storage: str
    latent_scaling: float
    blocks: tuple[str, ...]
    thresholds: tuple[float, ...]
    grid: int = 16
    weights: str | tuple[float, ...] = "proportional"
    solver: str = "merge"
    auto: bool = False
    noise_seed: int | None = None
    channels: int | None = None
    vae: str | None = None
    target: str = "gpu"
    words: tuple[str, ...] = ()
    input: str = DEFAULT_INPUT.name
    producer: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA
    plan: PlanInfo | None = None

    @property
    def frame_input(self) -> FrameInput:
        """How the graph takes a frame."""
        return FRAME_INPUTS[self.input]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the engine's outputs, in order, as its head defines them."""
        return tuple(HEADS[self.head].outputs(self))

    @property
    def word_outputs(self) -> tuple[str, ...]:
        """Names of the outputs with the words' maps, finest first: the last of `outputs`, where there are words."""
        return tuple(level.word_output for level in self.levels) if self.words else ()

    def to_json(self) -> str:
        """The text of the sidecar; `from_json` reads it."""
        data = asdict(self)
        for name in ("plan", "channels"):  # what few engines have
            if data[name] is None:
                del data[name]
        for name in ("words", "auto"):
            if not data[name]:
                del data[name]
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> "EngineSpec":
        """Read the text of a sidecar or of a metadata entry; `where` names it in errors.

        Raises DiffSegError when the text is not JSON, has another schema version, or when a field is missing or of
        another type.
        """
        try:
            data = json.loads(text, parse_constant=checked.refuse_constant)
        except (ValueError, RecursionError) as error:
            raise DiffSegError(
                f"{where} is not JSON ({error}); export the engine again with 'python -m export'"
            ) from None
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA or isinstance(schema, bool):
            raise DiffSegError(
                f"{where} has schema version {repr(schema)[:80]}, this runtime reads {SCHEMA}; export the engine again "
                "with the 'python -m export' of this version"
            )
        try:
            return cls(**_checked(data, {f.name for f in fields(cls)}))
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise DiffSegError(
                f"{where} lacks or mistypes a field ({str(error)[:300]}); export the engine again with "
                "'python -m export'"
            ) from None


_WHOLE = {
    "height": (8, checked.LARGEST_SIDE),
    "width": (8, checked.LARGEST_SIDE),
    "timestep": (0, checked.LARGEST_COUNT),
}
_OPTIONAL_WHOLE = {
    "batch": (1, checked.LARGEST_COUNT),
    "grid": (2, checked.LARGEST_SIDE),
    "noise_seed": (-(1 << 63), (1 << 64) - 1),
    "channels": (1, checked.LARGEST_COUNT),
    "schema": (SCHEMA, SCHEMA),
}
_TEXTS = ("source", "head", "prompt", "precision", "storage")
_OPTIONAL_TEXTS = ("revision", "vae", "target", "solver", "input")
_NEVER_NULL = ("grid", "target", "schema", "solver", "input")


def _checked(data: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields of an EngineSpec from parsed JSON; fields that are not known are left out.

    Raises KeyError, TypeError, ValueError or OverflowError when a field is missing, of another type or out of range.
    """
    found = {name: value for name, value in data.items() if name in known}
    for name, bounds in _WHOLE.items():
        checked.whole(name, found[name], *bounds)
    for name in _TEXTS:
        checked.text(name, found[name])
    for name in (*_OPTIONAL_WHOLE, *_OPTIONAL_TEXTS):
        if name in found and (found[name] is not None or name in _NEVER_NULL):
            if name in _OPTIONAL_WHOLE:
                checked.whole(name, found[name], *_OPTIONAL_WHOLE[name])
            else:
                checked.text(name, found[name])
    found.setdefault("batch", data["batch"])
    found.setdefault("revision", data["revision"])
    found["levels"] = tuple(
        Level(
            *(
                checked.whole(f"levels.{name}", level[name], 1, checked.LARGEST_SIDE)
                for name in ("height", "width", "layers")
            )
        )
        for level in checked.items("levels", found["levels"])
    )
    found["blocks"] = tuple(checked.text("blocks", block) for block in checked.items("blocks", found["blocks"]))
    found["latent_scaling"] = checked.number("latent_scaling", found["latent_scaling"])
    found["thresholds"] = tuple(
        checked.number("thresholds", t) for t in checked.items("thresholds", found["thresholds"])
    )
    from runtime.pyramid.config import check_thresholds  # which imports NumPy

    check_thresholds(found["thresholds"], found["thresholds"])
    if found["head"] not in HEADS:
        raise ValueError(f"head: expected {' or '.join(HEADS)}, found {found['head']!r}")
    if found.get("input", DEFAULT_INPUT.name) not in FRAME_INPUTS:
        raise ValueError(f"input: expected {' or '.join(FRAME_INPUTS)}, found {found['input']!r}")
    missing = [name for name in HEADS[found["head"]].needs if found.get(name) is None]
    if missing:
        raise ValueError(f"{missing[0]}: expected a number, which the head {found['head']} needs, found none")
    if not found["levels"]:
        raise ValueError("levels: expected one or more, found none")
    weights = found.get("weights", "")
    if isinstance(weights, str):
        checked.text("weights", weights)
    else:
        found["weights"] = tuple(
            checked.number("weights", weight, zero=True) for weight in checked.items("weights", weights)
        )
    producer = found.get("producer", {})
    if not isinstance(producer, dict):
        raise TypeError(f"producer: expected an object, found {producer!r}")
    for name, version in producer.items():
        checked.text("producer", name), checked.text("producer", version)
    if not isinstance(found.get("auto", False), bool):
        raise TypeError(f"auto: expected true or false, found {repr(found['auto'])[:80]}")
    if found.get("auto") and (HEADS[found["head"]].route != "maps" or found.get("solver", "merge") != "merge"):
        raise ValueError("auto: expected the head attention and the solver merge, which alone can choose thresholds")
    found["words"] = checked.words("words", found.get("words", []))
    if found.get("plan") is not None:
        found["plan"] = PlanInfo.from_data(found["plan"])
    return found


def sidecar_path(engine: Path) -> Path:
    """`tiny.onnx` → `tiny.onnx.json`."""
    return engine.with_name(engine.name + ".json")


def check_sidecar(engine: Path, spec: EngineSpec) -> None:
    """Compare an ONNX engine's sidecar, if it has one, with the metadata inside the file.

    Raises DiffSegError that names the first field that differs, both values, and the remedy.
    """
    path = sidecar_path(engine)
    if not path.exists():
        return
    beside = EngineSpec.from_json(read_small_text(path), str(path))
    for f in fields(EngineSpec):
        inside, found = getattr(spec, f.name), getattr(beside, f.name)
        if inside != found:
            raise DiffSegError(
                f"{path} does not belong to {engine.name}: field '{f.name}' is {found!r} there and {inside!r} in "
                "the engine; delete the sidecar (the engine carries the same fields) or export the engine again"
            )


def read_metadata(path: Path, metadata: str | None) -> EngineSpec:
    """The description inside an ONNX engine, checked against its sidecar.

    `metadata`: the entry `METADATA_KEY` of the file, None without one.
    Raises DiffSegError when the file is not an engine, or the sidecar belongs to another file.
    """
    if metadata is None:
        raise DiffSegError(
            f"{path} is not an engine: expected an ONNX file with the metadata entry '{METADATA_KEY}' that "
            "'python -m export' writes; export a model with it"
        )
    spec = EngineSpec.from_json(metadata, f"the metadata of {path}")
    check_sidecar(path, spec)
    return spec


def read_spec(path: Path, metadata: str | None, outputs: Sequence[str]) -> EngineSpec:
    """As `read_metadata`, and checked against the graph's outputs, whose names are `outputs`.

    Raises DiffSegError also when the graph has other outputs.
    """
    spec = read_metadata(path, metadata)
    expected = list(spec.outputs)
    if list(outputs) != expected:
        raise DiffSegError(
            f"{path} has outputs {list(outputs)}, its metadata names {expected}; export the engine again"
        )
    return spec

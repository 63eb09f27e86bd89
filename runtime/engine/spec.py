"""What an engine says of itself: the same fields in the ONNX metadata and in `<engine>.json`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from runtime.errors import DiffSegError
from runtime.files import read_text

SCHEMA = 1


METADATA_KEY = "diffseg"


HEADS = ("attention", "labels")


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


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """What a plan is besides: who built it, for which GPU, and what the builder was asked for.

    What only a GPU can tell is None where there was none. `flavour`: tensorrt or tensorrt_rtx, with its `version`.
    `sha256`, `size`: of the plan file, in bytes. `platform`: system and processor it was built on. `gpu`,
    `compute_capability`: of the card it was built on, "8.9". `targets`: compute capabilities asked of TensorRT-RTX,
    None for its default. `batch`: least, best and most frames per call of a dynamic batch. `types`: of inputs and
    outputs; `arithmetic`: how many convolutions, matrix products and softmaxes the parsed network has of each type;
    `inspected`: how many layers of the built plan give each type. `seconds`: the build took. `engine`: the ONNX engine
    it was built of, seen from the plan's folder.
    """

    flavour: str
    version: str
    sha256: str
    size: int
    platform: str
    gpu: str | None
    compute_capability: str | None
    optimization_level: int
    workspace: int
    types: Mapping[str, str]
    arithmetic: Mapping[str, Mapping[str, int]]
    seconds: float
    tf32: bool = False
    targets: tuple[str, ...] | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    batch: tuple[int, int, int] | None = None
    inspected: Mapping[str, int] | None = None
    engine: str | None = None

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "PlanInfo":
        """From parsed JSON. Raises KeyError, TypeError or ValueError where a field is missing or of another type."""
        if not isinstance(data, Mapping):
            raise TypeError(f"plan: {data!r}")
        known = {f.name for f in fields(cls)}
        given = {name: value for name, value in data.items() if name in known}
        for name in ("targets", "batch"):
            if given.get(name) is not None and not isinstance(given[name], list):
                raise TypeError(f"{name} {given[name]!r}")
            given[name] = None if given.get(name) is None else tuple(given[name])
        plan = cls(**given)
        kinds: dict[type, tuple[str, ...]] = {
            str: ("flavour", "version", "sha256", "platform", "gpu", "compute_capability", "targets", "engine"),
            int: ("size", "optimization_level", "workspace", "batch"),
            bool: ("tf32", "version_compatible", "hardware_compatible"),
        }
        absent = ("gpu", "compute_capability", "targets", "batch", "engine")  # may be None
        for kind, names in kinds.items():
            for name in names:
                value = getattr(plan, name)
                values = value if isinstance(value, tuple) else (value,)
                if not all(type(each) is kind for each in values) and not (value is None and name in absent):
                    raise ValueError(f"{name} {value!r}")
        if plan.batch is not None and (
            len(plan.batch) != 3 or not 1 <= plan.batch[0] <= plan.batch[1] <= plan.batch[2]
        ):
            raise ValueError(f"batch {plan.batch}")
        return plan


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything the runtime must know of an engine before it runs it (DESIGN: engine contract).

    `height`, `width`: pixels of the frame the graph takes. `batch`: frames per call, None when dynamic.
    `levels`: the pyramid, finest first. `precision`: of the arithmetic, fp32, fp16 or
    bf16; `storage`: of the weights in the file. `thresholds`, `grid` and `weights`: the model's defaults for the merge;
    with the head `labels`, grid, weights and the number of thresholds are part of the graph.
    `noise_seed`: of the noise in the latent, None for none. `vae`: the one swapped in, None for the model's own.
    `target`: gpu or cpu, what the attention in the graph is written for.
    `plan`: of a plan alone.
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
    noise_seed: int | None = None
    vae: str | None = None
    target: str = "gpu"
    producer: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA
    plan: PlanInfo | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the engine's outputs, in order."""
        return ("labels", "segments") if self.head == "labels" else tuple(level.output for level in self.levels)

    def to_json(self) -> str:
        """The sidecar's text; `from_json` is its inverse."""
        data = asdict(self)
        if self.plan is None:
            del data["plan"]
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> "EngineSpec":
        """Read a sidecar's or a metadata entry's text; `where` names it in errors.

        Raises DiffSegError if it is not JSON, of another schema version, or lacks or mistypes a field.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DiffSegError(
                f"{where} is not JSON ({error}); export the engine again with 'python -m export'"
            ) from None
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise DiffSegError(
                f"{where} has schema version {schema!r}, this runtime reads {SCHEMA}; export the engine again "
                "with the 'python -m export' of this version"
            )
        known = {f.name for f in fields(cls)}
        try:
            data["levels"] = tuple(
                Level(int(lv["height"]), int(lv["width"]), int(lv["layers"])) for lv in data["levels"]
            )
            data["blocks"] = tuple(str(block) for block in data["blocks"])
            data["thresholds"] = tuple(float(t) for t in data["thresholds"])
            if not isinstance(data.get("weights", ""), str):
                data["weights"] = tuple(float(weight) for weight in data["weights"])
            if data.get("plan") is not None:
                data["plan"] = PlanInfo.from_data(data["plan"])
            spec = cls(**{k: v for k, v in data.items() if k in known})
            sizes = (spec.height, spec.width, spec.timestep, spec.grid, spec.batch or 1)
            if spec.head not in HEADS or not spec.levels or not all(isinstance(s, int) for s in sizes):
                raise ValueError(f"head {spec.head!r}, {len(spec.levels)} levels, sizes {sizes}")
        except (KeyError, TypeError, ValueError) as error:
            raise DiffSegError(
                f"{where} lacks or mistypes a field ({error}); export the engine again with 'python -m export'"
            ) from None
        return spec


def sidecar_path(engine: Path) -> Path:
    """`tiny.onnx` → `tiny.onnx.json`."""
    return engine.with_name(engine.name + ".json")


def check_sidecar(engine: Path, spec: EngineSpec) -> None:
    """Compare an ONNX engine's sidecar, where there is one, with the metadata inside the file.

    Raises DiffSegError naming the first field that differs, what each says, and how to mend it.
    """
    path = sidecar_path(engine)
    if not path.exists():
        return
    beside = EngineSpec.from_json(read_text(path), str(path))
    for f in fields(EngineSpec):
        inside, found = getattr(spec, f.name), getattr(beside, f.name)
        if inside != found:
            raise DiffSegError(
                f"{path} does not belong to {engine.name}: field '{f.name}' is {found!r} there and {inside!r} in "
                "the engine; delete the sidecar (the engine carries the same fields) or export the engine again"
            )


def read_spec(path: Path, metadata: str | None, outputs: Sequence[str]) -> EngineSpec:
    """The description inside an ONNX engine, held to its sidecar and to the graph's outputs.

    Raises DiffSegError when the file is no engine, or the three do not agree.
    """
    if metadata is None:
        raise DiffSegError(
            f"{path} is an ONNX model but no engine: expected the metadata entry '{METADATA_KEY}' that "
            "'python -m export' writes; export a model with it"
        )
    spec = EngineSpec.from_json(metadata, f"the metadata of {path}")
    check_sidecar(path, spec)
    expected = list(spec.outputs)
    if list(outputs) != expected:
        raise DiffSegError(
            f"{path} has outputs {list(outputs)}, its metadata names {expected}; export the engine again"
        )
    return spec

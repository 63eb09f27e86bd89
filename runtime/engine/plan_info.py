"""The fields that only a plan's description has, and the checks they must pass when they come from untrusted JSON."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from runtime.engine import fields as checked


@dataclass(frozen=True, slots=True)
class PlanInfo:
    """The part of a description that only a plan has: its builder, the GPU it is for, and the builder's options.

    Attributes:
        flavour, version: of the library that built it: tensorrt or tensorrt_rtx, "11.4.0.106".
        sha256, size: of the plan file; the size in bytes.
        platform: system and processor of the build, "linux x86_64".
        gpu, compute_capability: of the card of the build, "8.9"; None if it had none.
        optimization_level, workspace, tf32, version_compatible, hardware_compatible: the builder's options; the
            workspace in bytes.
        types: type of every input and output, by name.
        arithmetic: how many convolutions, matrix products and softmaxes of each type the parsed network has.
        inspected: how many layers of the built plan give each type; None if no GPU could tell.
        warnings: what the build has found that may matter.
        seconds: duration of the build.
        targets: compute capabilities asked of TensorRT-RTX; None for its default.
        batch: least, best and most frames per call of a dynamic batch; None for a fixed batch.
        engine: path of the ONNX engine it was built from, relative to the plan's folder.
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
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "PlanInfo":
        """The fields from parsed JSON. Raises TypeError or ValueError when a field is missing or of another type."""
        if not isinstance(data, Mapping):
            raise TypeError(f"plan: expected an object, found {data!r}")
        known = {f.name for f in fields(cls)}
        given = {name: value for name, value in data.items() if name in known}
        for name in ("targets", "batch"):
            if given.get(name) is not None and not isinstance(given[name], list):
                raise TypeError(f"plan.{name}: expected a list or null, found {given[name]!r}")
            given[name] = None if given.get(name) is None else tuple(given[name])
        if not isinstance(given.setdefault("warnings", []), list):
            raise TypeError(f"plan.warnings: expected a list, found {repr(given['warnings'])[:80]}")
        given["warnings"] = tuple(given["warnings"])
        plan = cls(**given)
        kinds: dict[type, tuple[str, ...]] = {
            str: (
                *("flavour", "version", "sha256", "platform", "gpu", "compute_capability", "targets", "engine"),
                "warnings",
            ),
            int: ("size", "optimization_level", "workspace", "batch"),
            bool: ("tf32", "version_compatible", "hardware_compatible"),
        }
        optional = ("gpu", "compute_capability", "targets", "batch", "engine")  # may be None
        for kind, names in kinds.items():
            for name in names:
                value = getattr(plan, name)
                values = value if isinstance(value, tuple) else (value,)
                if not all(type(each) is kind for each in values) and not (value is None and name in optional):
                    raise ValueError(f"plan.{name}: expected {kind.__name__}, found {value!r}")
        checked.text("plan.version", plan.version, 64)
        checked.number("plan.seconds", plan.seconds, zero=True)
        for name, value in (
            ("types", plan.types),
            ("arithmetic", plan.arithmetic),
            ("inspected", plan.inspected or {}),
        ):
            if not isinstance(value, Mapping):
                raise TypeError(f"plan.{name}: expected an object, found {repr(value)[:80]}")
        for capability in (plan.compute_capability, *(plan.targets or ())):
            if capability is not None and not re.fullmatch(r"\d{1,3}(\.\d{1,3})?", capability, re.ASCII):
                raise ValueError(f"plan.compute_capability: expected two numbers, as 8.9, found {capability[:80]!r}")
        if plan.batch is not None and (
            len(plan.batch) != 3 or not 1 <= plan.batch[0] <= plan.batch[1] <= plan.batch[2]
        ):
            raise ValueError(f"plan.batch: expected least ≤ best ≤ most, found {plan.batch}")
        return plan

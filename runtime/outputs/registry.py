"""Kinds of output: a registry that is data. A kind is one entry here and the module it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.outputs.form import ClipForm
    from runtime.outputs.sinks import Sink


@dataclass(frozen=True, slots=True)
class OutputKind:
    """A kind of output. Its module has two functions, which open where it is written:

    `picture(stem)` for a photograph and `clip(stem, form, warn)` for a clip. `stem` is the path of the output without
    `_<kind>` and suffix, `form` what of the clip a video keeps, and `warn` is told what is left out.
    """

    name: str
    module: str
    help: str


KINDS = (
    OutputKind("overlay", "runtime.outputs.overlay", "the frame under its segments' colours"),
    OutputKind("labels", "runtime.outputs.labels", "one segment index per pixel"),
    OutputKind("segments", "runtime.outputs.segments", "the segments' colours alone"),
    OutputKind("archive", "runtime.outputs.archive", "a clip's labels in one .npz; of a photograph, labels"),
)


def parse_kinds(text: str) -> list[str]:
    """`overlay,labels` → ["overlay", "labels"]; `none` → []. Raises DiffSegError for anything unknown."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    known = [kind.name for kind in KINDS]
    if names == ["none"]:
        return []
    if not names or not set(names) <= set(known):
        raise DiffSegError(f"--save: expected some of {', '.join(known)}, or none, found {text!r}")
    return names


def picture_sinks(names: Iterable[str], stem: Path) -> dict[str, Sink]:
    """Where each kind of output of one photograph goes; two kinds that write one file are one."""
    sinks: dict[str, Sink] = {}
    for name in names:
        sink = import_module(_kind(name).module).picture(stem)
        if all(sink.path != other.path for other in sinks.values()):
            sinks[name] = sink
    return sinks


def clip_sinks(names: Iterable[str], stem: Path, form: ClipForm, warn: Callable[[str], None]) -> dict[str, Sink]:
    """Where each kind of output of one clip goes. Raises DiffSegError where a kind's extra is missing."""
    return {name: import_module(_kind(name).module).clip(stem, form, warn) for name in names}


def _kind(name: str) -> OutputKind:
    return next(kind for kind in KINDS if kind.name == name)

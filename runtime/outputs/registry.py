"""Kinds of output: a registry that is data. A kind is one entry here and the module it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from runtime.errors import DiffSegError
from runtime.terminal import check_packages

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.outputs.form import ClipForm
    from runtime.outputs.listing import Listing
    from runtime.outputs.sinks import Sink
    from runtime.outputs.target import Target


@dataclass(frozen=True, slots=True)
class OutputKind:
    """A kind of output. Its module has two functions, which open where it is written:

    `picture(target)` for a photograph and `clip(target, form, warn)` for a clip. `target` says where
    (`runtime.outputs.target`), `form` what of the clip a video keeps, and `warn` is told what is left out. A module
    whose photographs are listed in one file has it as `LISTING` (`runtime.outputs.listing`).

    Attributes:
        packages: packages that it needs and the runtime does not, by the names they are imported by.
        needs_frame: whether it shows the frame itself.
        needs_words: whether it is made of the segments' words.
    """

    name: str
    module: str
    help: str
    packages: tuple[str, ...] = ()
    needs_frame: bool = False
    needs_words: bool = False


KINDS = (
    OutputKind("overlay", "runtime.outputs.overlay", "the frame under its segments' colours", needs_frame=True),
    OutputKind("labels", "runtime.outputs.labels", "one segment index per pixel"),
    OutputKind("segments", "runtime.outputs.segments", "the segments' colours alone"),
    OutputKind("archive", "runtime.outputs.archive", "a clip's labels in one .npz; of a photograph, labels"),
    OutputKind("npz", "runtime.outputs.npz", "labels and settings in one .npz"),
    OutputKind("masks", "runtime.outputs.masks", "a PNG per segment"),
    OutputKind("cutouts", "runtime.outputs.cutouts", "each segment of the frame as a PNG with alpha", needs_frame=True),
    OutputKind("polygons", "runtime.outputs.polygons", "GeoJSON in pixels"),
    OutputKind("yolo", "runtime.outputs.yolo", "Ultralytics' text of polygons"),
    OutputKind("coco", "runtime.outputs.coco", "COCO instances; of a clip, YouTube-VIS", ("pycocotools",)),
    OutputKind("panoptic", "runtime.outputs.panoptic", "COCO panoptic: PNGs of ids and a JSON file"),
    OutputKind("semantic", "runtime.outputs.semantic", "one word index per pixel, and the words", needs_words=True),
)


def parse_kinds(text: str, option: str = "--save") -> list[str]:
    """`overlay,labels` → ["overlay", "labels"]; `none` → []. Raises DiffSegError for anything unknown.

    `option`: for its message. Raises ModuleNotFoundError where a kind's package is missing.
    """
    if not isinstance(text, str):
        raise DiffSegError(f"{option}: expected kinds with commas, such as 'overlay,labels', found {text!r}")
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    known = [kind.name for kind in KINDS]
    if names == ["none"]:
        return []
    if not names or not set(names) <= set(known):
        raise DiffSegError(f"{option}: expected some of {', '.join(known)}, or none, found {text!r}")
    check_packages(*(package for name in names for package in _kind(name).packages))
    return names


def picture_sinks(names: Iterable[str], target: Target, *, listed: bool = True) -> dict[str, Sink]:
    """Where each kind of output of one photograph goes; two kinds that write one file are one.

    `listed`: False leaves out the kinds that list photographs in one file.
    """
    modules = {name: import_module(_kind(name).module) for name in names}
    return _different(
        {
            name: (module.picture, module.picture(target))
            for name, module in modules.items()
            if listed or not _lists(module)
        }
    )


def clip_sinks(names: Iterable[str], target: Target, form: ClipForm, warn: Callable[[str], None]) -> dict[str, Sink]:
    """Where each kind of output of one clip goes.

    Raises DiffSegError where a kind's extra is missing, or two kinds write one file of a clip.
    """
    modules = {name: import_module(_kind(name).module) for name in names}
    return _different({name: (module.clip, module.clip(target, form, warn)) for name, module in modules.items()})


def needing_frame(names: Iterable[str]) -> list[str]:
    """Those of the kinds that show the frame itself."""
    return [name for name in names if _kind(name).needs_frame]


def needing_words(names: Iterable[str]) -> list[str]:
    """Those of the kinds that are made of the segments' words."""
    return [name for name in names if _kind(name).needs_words]


def listings(names: Iterable[str]) -> list[Listing]:
    """The files of a whole run that these kinds have."""
    modules = [import_module(_kind(name).module) for name in names]
    return [module.LISTING for module in modules if _lists(module)]


def _different(opened: dict[str, tuple[Callable[..., Sink], Sink]]) -> dict[str, Sink]:
    """The sinks that functions opened, without those of a function that was called before.

    Raises DiffSegError where two functions have opened one file.
    """
    first: dict[Path, str] = {}
    for name, (opener, sink) in opened.items():
        other = first.setdefault(sink.path, name)
        if opened[other][0] is not opener:
            raise DiffSegError(f"--save: {other} and {name} write one file, {sink.path}; choose one of them")
    return {name: sink for name, (_, sink) in opened.items() if first[sink.path] == name}


def _lists(module: object) -> bool:
    return hasattr(module, "LISTING")


def _kind(name: str) -> OutputKind:
    return next(kind for kind in KINDS if kind.name == name)

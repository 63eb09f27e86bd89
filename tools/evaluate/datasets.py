"""Data sets in the layouts of their official downloads: the images, and the mask of each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np

from runtime.errors import DiffSegError
from runtime.frames.decode import read_frame
from runtime.frames.silence import decoders_silenced
from tools.evaluate.layouts import ALIASES, KNOWN, Layout
from tools.evaluate.masks import (
    MASK_SUFFIXES,
    Protocol,
    is_image,
    is_mask,
    read_protocol,
    read_truths,
    shipped_protocol,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and its ground truth. `name`: its path inside the image folder, without the suffix."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True, slots=True)
class DataSet:
    """Samples in a fixed order, and the meaning of their masks. `missing`: the number of samples left out."""

    name: str
    protocol: Protocol
    samples: tuple[Sample, ...]
    ignore: frozenset[int] = field(default_factory=frozenset)
    missing: int = 0

    def load(self, sample: Sample) -> tuple[NDArray[np.uint8], list[NDArray[np.int32]]]:
        """The frame uint8 [H, W, 3] BGR and one map int32 per annotator.

        A protocol with a crop cuts both square; the frame keeps its resolution and the maps are resized to the crop.
        DiffCut's cuts a square of one pixel less, resizes both to its input's side, and then the maps to the crop.
        Raises DiffSegError when a file cannot be read, sizes differ or no pixel is labelled.
        """
        frame = read_frame(sample.image)
        truths = read_truths(sample.mask, self.protocol, self.ignore)
        if self.protocol.crop or truths[0].shape != frame.shape[:2]:
            # The paper's code ignores EXIF rotation, and the masks of downloads belong to the pixels as stored.
            frame = _as_stored(sample.image)
        for truth in truths:
            if truth.shape != frame.shape[:2]:
                raise DiffSegError(
                    f"{sample.mask}: expected the size of its image {sample.image.name}, "
                    f"{frame.shape[1]}x{frame.shape[0]}, found {truth.shape[1]}x{truth.shape[0]}"
                )
        if self.protocol.crop and self.protocol.input:
            side, wide = max(1, min(frame.shape[:2]) - 1), self.protocol.input
            frame = resize_bilinear(centre_crop(frame, side), wide, wide)
            step = wide // self.protocol.crop
            truths = [resize_labels(centre_crop(truth, side), wide)[::step, ::step] for truth in truths]
            if self.protocol.background:
                truths = [np.where(truth < 0, np.int32(len(self.protocol.classes) - 1), truth) for truth in truths]
        elif self.protocol.crop:
            frame = centre_square(frame)
            truths = [resize_labels(centre_square(truth), self.protocol.crop) for truth in truths]
        if not all((truth >= 0).any() for truth in truths):
            raise DiffSegError(f"{sample.mask}: no pixel is labelled{', after the crop' if self.protocol.crop else ''}")
        return frame, truths


def _as_stored(path: Path) -> NDArray[np.uint8]:
    """A picture that `read_frame` has read, without its EXIF rotation."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    with decoders_silenced():
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION), np.uint8)


def centre_square(image: NDArray[Kind]) -> NDArray[Kind]:
    """The largest square in the middle of [H, W, ...]; of an odd margin the smaller half comes first."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def centre_crop(image: NDArray[Kind], side: int) -> NDArray[Kind]:
    """A square in the middle of [H, W, ...]; half a pixel goes to the even number, as in torchvision's CenterCrop."""
    top, left = (round((length - side) / 2) for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def resize_labels(labels: NDArray[np.int32], side: int) -> NDArray[np.int32]:
    """Labels int32 [side, side] by nearest neighbour with half-pixel centres."""
    return np.asarray(cv2.resize(labels, (side, side), interpolation=cv2.INTER_NEAREST_EXACT), np.int32)


def resize_bilinear(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Plain bilinear interpolation with half-pixel centres and without antialiasing, rounded to uint8.

    Computed in float32, because OpenCV's arithmetic on uint8 errs by up to one level.
    """
    if frame.shape[:2] == (height, width):
        return frame
    resized = cv2.resize(frame.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.rint(resized).astype(np.uint8)


def open_dataset(
    name: str,
    root: Path,
    *,
    split: str | None = None,
    images: str | None = None,
    masks: str | None = None,
    mask_ending: str | None = None,
    classes: Path | None = None,
    ignore: frozenset[int] = frozenset(),
    only: Path | None = None,
    every: int = 1,
    limit: int | None = None,
    partial: bool = False,
    protocol: str | None = None,
) -> DataSet:
    """Find a data set's files below `root`.

    `split`: None for the usual one. `images`, `masks`, `mask_ending`: other folders and another ending than the
    layout's. `classes`: another class map. `ignore`: further values that mean unlabelled. `only`: a text file
    with the name of one image per line, for those alone. `every`, `limit`: take every n-th image, and at most this
    number. `partial`: leave out images whose picture or mask is missing; otherwise that is an error.
    `protocol`: "diffcut" for that of DiffCut's code, None for the data set's own.
    Raises DiffSegError when `root` is not such a data set.
    """
    name = ALIASES.get(name, name)
    known = KNOWN[name]
    if not root.is_dir():
        raise DiffSegError(f"ROOT: expected the folder that {name} was unpacked into, found no folder {root}")
    if classes:
        meaning = read_protocol(classes, protocol)
    elif name == "folder":
        if protocol is not None:
            raise DiffSegError(f"--protocol {protocol}: expected a class map for a folder, found none; add --classes")
        meaning = Protocol(name)
    else:
        meaning = shipped_protocol(name, protocol)
    layouts = known.layouts
    if images or masks:
        first = layouts[0]
        layouts = (replace(first, images=images or first.images, masks=masks or first.masks, listing=None),)
    if mask_ending is not None:
        layouts = tuple(replace(layout, mask_ending=mask_ending) for layout in layouts)
    samples, missing = _pairs(name, root, layouts, split, known.split, meaning.images)
    total = len(samples) + len(missing)
    expected = meaning.expected_images if split in (None, known.split) else None
    if expected and total < expected and not partial:
        raise DiffSegError(
            f"{name}: expected {expected} images, found {total} below {root}; complete the data set, or take what is "
            "there with --partial"
        )
    if missing and not partial:
        raise DiffSegError(
            f"{name}: {len(missing)} of {total} images lack their picture or mask, first {missing[0]}; "
            "complete the data set, or leave them out with --partial"
        )
    if not samples:
        raise DiffSegError(f"{root}: expected images with masks; all {total} images lack one, the first {missing[0]}")
    if only is not None:
        samples = _named(samples, only)
    chosen = tuple(samples[::every][:limit])
    names = [sample.name for sample in samples]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DiffSegError(f"{root}: expected one image per name, found two called {twice}; rename one of them")
    return DataSet(name, meaning, chosen, ignore, len(missing))


def _named(samples: list[Sample], only: Path) -> list[Sample]:
    """The samples that a list names, in their own order."""
    names = set(_lines(only))
    if not names:
        raise DiffSegError(f"{only}: expected the names of images, one per line, found none")
    if absent := sorted(names - {sample.name for sample in samples}):
        raise DiffSegError(
            f"{only}: {len(absent)} of {len(names)} images are not there, first {absent[0]}; choose the --split that "
            "has them, or write their paths below the image folder, without suffix"
        )
    return [sample for sample in samples if sample.name in names]


def _lines(path: Path) -> list[str]:
    """Lines of a list of images, without empty ones. Raises DiffSegError when it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DiffSegError(
            f"{path}: expected a text file with one image per line, found none that can be read"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _pairs(
    name: str, root: Path, layouts: tuple[Layout, ...], split: str | None, usual: str, listed: tuple[str, ...]
) -> tuple[list[Sample], list[Path]]:
    """Samples and missing files by the layout that explains most of the files below `root`."""
    tried, found = [], []
    for layout in layouts:
        if split is not None and not layout.has_splits:
            continue  # a split that was asked for must not be ignored
        for below in layout.roots:
            inside = [Path(below, part.replace("{split}", split or usual)) for part in layout.folders if part]
            tried.append(" and ".join(map(str, inside)))
            images, masks, *lists = (root / path for path in inside)
            if images.is_dir() and masks.is_dir() and all(path.is_file() for path in lists):
                found.append(_pair(images, masks, layout, _stems(images, layout, lists, listed)))
    if found:
        best = max(found, key=lambda pair: len(pair[0]))
        if best[0] or best[1]:
            return best
        raise DiffSegError(f"{root}: no images in {tried[0].split(' and ')[0]}; expected those of {name}")
    there = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    shown = ", ".join(there[:8]) + (", …" if len(there) > 8 else "")
    hint = (
        ""
        if split or not any(layout.has_splits for layout in layouts)
        else (f"; --split chooses another split than {usual}")
    )
    ways = list(dict.fromkeys(tried)) or [f"no --split, because {name} has no splits"]
    expected = "; or ".join(ways[:3]) + "; or the like" * (len(ways) > 3)
    raise DiffSegError(f"{root}: {name} was not found: expected {expected}; found {shown or 'nothing'}{hint}")


def _stems(images: Path, layout: Layout, lists: list[Path], listed: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Name and path of every image: those of the protocol, else of the split's list, else of the folder."""
    for path in lists:
        listed = tuple(line.split()[0] for line in _lines(path))
    if listed:
        return [(stem, images / f"{stem}{layout.image_ending}") for stem in listed]
    ending = layout.image_ending
    paths = sorted(path for path in images.rglob("*") if is_image(path) and path.name.endswith(ending))
    if layout.mask_ending:  # pictures and masks may share a folder
        paths = [path for path in paths if not path.name.endswith(layout.mask_ending)]
    names = [path.relative_to(images).as_posix() for path in paths]
    stems = [
        text[: -len(ending)] if ending else text[: -len(path.suffix)] for text, path in zip(names, paths, strict=True)
    ]
    return list(zip(stems, paths, strict=True))


def _pair(images: Path, masks: Path, layout: Layout, stems: list[tuple[str, Path]]) -> tuple[list[Sample], list[Path]]:
    found = sorted(path for path in masks.rglob("*") if is_mask(path))
    # Suffixes in any case: cameras and old tools write .PNG.
    there = {path.relative_to(masks).with_suffix(path.suffix.lower()).as_posix(): path for path in found}
    endings = (
        [layout.mask_ending]
        if Path(f"x{layout.mask_ending}").suffix
        else [layout.mask_ending + suffix for suffix in MASK_SUFFIXES]
    )
    samples, missing = [], []
    for stem, path in stems:
        mask = next((there[f"{stem}{ending}"] for ending in endings if f"{stem}{ending}" in there), None)
        if mask is None or mask == path:  # a picture cannot be its own mask
            missing.append(masks / f"{stem}{endings[0]}")
        elif not path.is_file():
            missing.append(path)
        else:
            samples.append(Sample(stem, path, mask))
    return samples, missing

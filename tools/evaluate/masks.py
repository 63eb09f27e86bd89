"""Ground truth files: index masks, palettes, colours, MATLAB and NumPy files; and maps from values to classes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.errors import DiffSegError
from runtime.files import DAMAGE
from runtime.frames.formats import is_cut_short
from runtime.frames.silence import decoders_silenced
from runtime.frames.source import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from numpy.typing import NDArray

MASK_SUFFIXES = (".png", ".mat", ".npy", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")
PROTOCOLS = Path(__file__).resolve().parent / "protocol"
UNLABELLED = -1
DIFFCUT = "diffcut"
DIFFCUT_SIDES = {"input": 1024, "crop": 128}  # pixels


@dataclass(frozen=True, slots=True)
class Protocol:
    """The meaning of a data set's masks, read from `tools/evaluate/protocol/*.json` or from `--classes FILE`.

    Attributes:
        title: its name for people.
        classes: names of the classes; empty where regions have none, as in BSDS500.
        labels: value in a mask → class index, −1 for unlabelled; any other value is an error. Empty: every value from 0
            is a region.
        colours: (red, green, blue) in a colour mask → class index.
        crop: side of the square crop of image and truth that are compared, in pixels; None: whole images.
        input: of DiffCut's protocol, the side in pixels to which image and truth are resized before; None for others.
        background: whether the last class is the background, to which all unlabelled pixels belong, and every segment
            that no other class is matched with.
        images: the listed image ids; empty: all images.
        expected_images: the number of images in a complete download, if known.
        replace_threshold: an engine whose default is the first KL threshold gets the second, the paper's for this data
            set.
        published: rows of published results to print for comparison.
    """

    title: str
    classes: tuple[str, ...] = ()
    labels: dict[int, int] = field(default_factory=dict)
    colours: dict[tuple[int, ...], int] = field(default_factory=dict)
    crop: int | None = None
    input: int | None = None
    background: bool = False
    images: tuple[str, ...] = ()
    expected_images: int | None = None
    replace_threshold: tuple[float, float] | None = None
    published: tuple[dict[str, Any], ...] = ()


def read_protocol(path: Path, variant: str | None = None) -> Protocol:
    """Read a class map.

    `variant`: "diffcut" for the protocol of DiffCut's code (Couairon et al., NeurIPS 2024), of a file with a section of
    this name.
    Raises DiffSegError when the file does not have the form that `Protocol` describes, or no such section.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if variant is not None:
            data = _as_diffcut(data, path)
        classes = tuple(str(name) for name in data.get("classes", ()))
        labels = {int(value): int(index) for value, index in data.get("labels", {}).items()}
        colours = {
            tuple(int(part) for part in colour.split(",")): int(index)
            for colour, index in data.get("colours", {}).items()
        }
        wrong = [index for index in (*labels.values(), *colours.values()) if not -1 <= index < len(classes)]
        if wrong:
            raise ValueError(f"the class index {wrong[0]} is outside its {len(classes)} classes")
        if classes and not (labels or colours):
            raise ValueError('it has classes, but neither "labels" nor "colours"')
        if not isinstance(data.get("classes", []), list):
            raise ValueError('"classes" is not a list of names')
        crop = data.get("crop")
        if crop is not None and not (type(crop) is int and crop > 0):
            raise ValueError(f'"crop" is {crop!r}, not a number of pixels')
        side = data.get("input")
        if side is not None and (type(side) is not int or crop is None or side < crop or side % crop):
            raise ValueError(f'"input" is {side!r}, not a multiple of "crop"')
        if any("method" not in row for row in data.get("published", ())):
            raise ValueError('a row of "published" has no "method"')
        replace = data.get("replace_threshold")
        return Protocol(
            title=str(data.get("title", path.stem)),
            classes=classes,
            labels=labels,
            colours=colours,
            crop=crop,
            input=side,
            background=bool(data.get("background")),
            images=_images(data.get("images", ())),
            expected_images=data.get("expected_images"),
            replace_threshold=None if replace is None else (float(replace[0]), float(replace[1])),
            published=tuple(data.get("published", ())),
        )
    except OSError as error:
        raise DiffSegError(f"cannot read the class map {path}: {error.strerror or error}") from None
    except DAMAGE as error:
        raise DiffSegError(
            f"{path}: not a valid class map ({error}); expected JSON such as "
            '{"title": "mine", "classes": ["road", "sky"], "labels": {"7": 0, "23": 1, "255": -1}}'
        ) from None


def _as_diffcut(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """The class map with what its section "diffcut" changes; its background becomes the last class."""
    section = data.get(DIFFCUT)
    if not isinstance(section, dict):
        raise DiffSegError(
            f"--protocol {DIFFCUT}: {path.name} has no section {DIFFCUT!r}; expected {', '.join(with_diffcut())}, or a "
            f'class map of your own with "{DIFFCUT}": {{}}, or with {{"background": "its class"}} in it'
        )
    data = {**data, "published": (), **DIFFCUT_SIDES, **section}
    if not (background := section.get("background")):
        return data
    old = list(data["classes"])
    data["classes"] = [*(name for name in old if name != background), background]
    # Unlabelled until the crop is done: then all that is left is background.
    number = {-1: -1} | {
        index: -1 if name == background else data["classes"].index(name) for index, name in enumerate(old)
    }
    for kind in ("labels", "colours"):
        if kind in data:
            data[kind] = {value: number[index] for value, index in data[kind].items()}
    return data


def _images(listed: Any) -> tuple[str, ...]:
    """Names of images; a text is the name of a data set whose protocol lists them."""
    return shipped_protocol(listed).images if isinstance(listed, str) else tuple(listed)


def with_diffcut() -> list[str]:
    """The data sets whose shipped protocol has DiffCut's variant."""
    return sorted(path.stem for path in PROTOCOLS.glob("*.json") if f'"{DIFFCUT}"' in path.read_text(encoding="utf-8"))


def shipped_protocol(name: str, variant: str | None = None) -> Protocol:
    """The protocol that ships for a data set; `variant` as of `read_protocol`."""
    return read_protocol(PROTOCOLS / f"{name}.json", variant)


def read_truths(path: Path, protocol: Protocol, ignore: frozenset[int] = frozenset()) -> list[NDArray[np.int32]]:
    """Ground truth of one image, one map int32 [H, W] per annotator: class or region ≥ 0, −1 for unlabelled.

    `ignore`: further values that mean unlabelled; in a colour mask the grey of that level.
    Raises DiffSegError when the file cannot be read, is not a mask, or has a value that the class map lacks.
    """
    return [_classes(values, protocol, ignore, path) for values in _read(path)]


def _classes(values: NDArray[Any], protocol: Protocol, ignore: frozenset[int], path: Path) -> NDArray[np.int32]:
    if values.ndim == 3:
        if protocol.colours:
            keys = {_packed(colour): index for colour, index in protocol.colours.items()}
            keys |= {value * 0x010101: UNLABELLED for value in ignore}
            return _look_up(_pack(values), keys, path, colour=True)
        if not (values[..., :1] == values).all():
            if protocol.classes:
                raise DiffSegError(
                    f"{path}: expected one channel of class indices, found a colour picture; use a class map "
                    'with "colours": {"R,G,B": class}'
                )
            # Each colour is a region, numbered in the order of the colours.
            packed = _pack(values)
            return _regions(packed, frozenset(value * 0x010101 for value in ignore))
        values = values[..., 0]
    if protocol.labels:
        return _look_up(values, protocol.labels | dict.fromkeys(ignore, UNLABELLED), path)
    if protocol.colours:
        raise DiffSegError(f'{path}: expected a colour mask, found one of indices; add "labels" to the class map')
    return _regions(values, ignore)


def _regions(values: NDArray[Any], ignore: frozenset[int]) -> NDArray[np.int32]:
    found, numbers = np.unique(values, return_inverse=True)
    keep = (found >= 0) & ~np.isin(found, list(ignore))
    index = np.where(keep, np.cumsum(keep) - 1, UNLABELLED).astype(np.int32)
    return index[numbers.reshape(values.shape)]


def _look_up(values: NDArray[Any], classes: dict[int, int], path: Path, colour: bool = False) -> NDArray[np.int32]:
    found, numbers = np.unique(values, return_inverse=True)
    unknown = [int(value) for value in found if int(value) not in classes]
    if unknown:
        names = [",".join(str(v >> s & 255) for s in (16, 8, 0)) if colour else str(v) for v in unknown[:5]]
        raise DiffSegError(
            f"{path}: expected one of the class map's {len(classes)} {'colours' if colour else 'values'}, found "
            f"{' and '.join(names)}; add it to the class map, or name another kind of mask"
        )
    index = np.array([classes[int(value)] for value in found], np.int32)
    return index[numbers.reshape(values.shape)]


def _pack(bgr: NDArray[np.uint8]) -> NDArray[np.int32]:
    blue, green, red = (bgr[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _packed(rgb: tuple[int, ...]) -> int:
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


def _read(path: Path) -> list[NDArray[Any]]:
    """The values in the file: int [H, W], or uint8 [H, W, 3] BGR of a colour picture; one array per annotator."""
    try:
        if path.suffix.lower() == ".mat":
            return _read_matlab(path)
        values = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _read_picture(path)
    except DiffSegError:
        raise
    except Exception as error:  # NumPy and Pillow raise many types for a broken file
        raise DiffSegError(f"{path}: cannot be read as a mask ({error})") from None
    if not isinstance(values, np.ndarray):
        raise DiffSegError(f"{path}: expected one array, as numpy.save writes it, found an archive of arrays")
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.ndim not in (2, 3) or not np.issubdtype(values.dtype, np.integer) or 0 in values.shape:
        raise DiffSegError(f"{path}: expected whole numbers [H, W], found {values.dtype} {list(values.shape)}")
    return [values]


def _read_picture(path: Path) -> NDArray[Any]:
    data = path.read_bytes()
    if is_cut_short(data):
        raise DiffSegError(f"{path}: expected a whole file, found {len(data)} bytes of it; copy or download it again")
    if (data[:8] == b"\x89PNG\r\n\x1a\n" and data[25:26] == b"\x03") or data[:4] == b"GIF8":
        # OpenCV returns the palette's colours; a mask means the indices.
        import PIL.Image

        with PIL.Image.open(path) as picture:
            return np.asarray(picture.copy())
    with decoders_silenced():
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if values is None:
        raise ValueError("OpenCV cannot read this format, or the file is damaged")
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[25] == 0 and data[24] in (2, 4):
        # OpenCV scales grey levels of fewer bits to 0…255; a mask means the indices.
        values = values // (255 // (2 ** data[24] - 1))
    return values[..., :3] if values.ndim == 3 else values


def _read_matlab(path: Path) -> list[NDArray[Any]]:
    """BSDS500's `groundTruth` {annotators}.Segmentation, or a single matrix such as Pascal Context's `LabelMap`."""
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except Exception as error:  # scipy raises many types for a broken file
        raise DiffSegError(f"{path}: cannot be read as a MATLAB file ({str(error).splitlines()[0]})") from None
    if "groundTruth" in content:
        try:
            maps = [cell["Segmentation"][0, 0] for cell in content["groundTruth"].ravel()]
        except (ValueError, IndexError, TypeError) as error:
            raise DiffSegError(f"{path}: expected a field Segmentation in groundTruth, found none ({error})") from None
    else:
        maps = [value for name, value in content.items() if not name.startswith("__")]
    whole = [np.asarray(one) for one in maps if np.ndim(one) == 2 and np.issubdtype(np.asarray(one).dtype, np.integer)]
    if not whole or len(whole) < len(maps):
        raise DiffSegError(f"{path}: expected groundTruth as in BSDS500, or one matrix of whole numbers; found neither")
    return whole


def is_mask(path: Path) -> bool:
    """Whether a file has the name of a mask."""
    return path.suffix.lower() in MASK_SUFFIXES and not path.name.startswith(".")


def is_image(path: Path) -> bool:
    """Whether a file has the name of a picture."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")

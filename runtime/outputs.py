"""Drawing a result and writing its pictures; how outputs are known for this program's own."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.errors import DiffSegError
from runtime.sidecar import write_atomically

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.segmenter import Result

# A PNG text entry, so that a second run over the same folder knows these pictures for outputs.
OWN_MARK = b"tEXtSoftware\x00diffseg"
# The same for videos, as a box that players skip, and for label archives, as the zip file's comment: both stand last.
OWN_ARCHIVE = b"diffseg"
OWN_BOX = (8 + len(OWN_ARCHIVE)).to_bytes(4, "big") + b"free" + OWN_ARCHIVE
_LAST = {".mp4": OWN_BOX, ".npz": OWN_ARCHIVE}


def is_own_output(path: Path) -> bool:
    """Whether `path` is a PNG, a video or an archive that this program wrote: its mark stands first or last in it."""
    suffix = path.suffix.lower()
    try:
        if suffix not in (".png", *_LAST) or not path.is_file():
            return False
        with path.open("rb") as file:
            if suffix == ".png":
                return OWN_MARK in file.read(128)
            file.seek(-min(len(_LAST[suffix]), path.stat().st_size), 2)
            return file.read() == _LAST[suffix]
    except OSError:
        return False


def palette(count: int) -> "NDArray[np.uint8]":
    """uint8 [count, 3] BGR: colours far apart for neighbours in number, the same for the same index always.

    Hues step by the golden angle, so that any run of indices is spread over the circle; brightness and saturation
    alternate to tell hues apart that come close.
    """
    index = np.arange(count)
    hsv = np.empty((1, count, 3), np.uint8)
    hsv[0, :, 0] = np.round(index * 180 * 0.381966 + 8) % 180
    hsv[0, :, 1] = np.array([230, 150, 255, 190])[index % 4]
    hsv[0, :, 2] = np.array([255, 235, 190, 150])[index // 2 % 4]
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0] if count else hsv[0]


def borders(labels: "NDArray[np.int32]", thickness: int = 1) -> "NDArray[np.bool_]":
    """bool [H, W]: pixels whose right or lower neighbour has another label, widened to `thickness` pixels."""
    edges: Any = np.zeros(labels.shape, np.uint8)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= labels[:-1] != labels[1:]
    if thickness > 1:
        edges = cv2.dilate(edges, np.ones((thickness, thickness), np.uint8))
    return edges.astype(bool)


def paint(labels: "NDArray[np.int32]") -> "NDArray[np.uint8]":
    """uint8 [H, W, 3] BGR: every label in its colour, which depends on nothing but its number."""
    return palette(int(labels.max(initial=0)) + 1)[labels]


def draw_overlay(frame: "NDArray[np.uint8]", result: "Result", opacity: float = 0.5) -> "NDArray[np.uint8]":
    """The frame under its segments' colours with white borders: uint8 [H, W, 3] BGR."""
    colours = paint(result.labels)
    overlay = cv2.addWeighted(frame, 1 - opacity, colours, opacity, 0)
    # About one pixel of border for every 400 of the frame, so that it shows at any size.
    overlay[borders(result.labels, 1 + min(frame.shape[:2]) // 400)] = 255
    return np.asarray(overlay, np.uint8)


def label_image(frame: "NDArray[np.uint8]", result: "Result") -> "NDArray[np.uint8] | NDArray[np.uint16]":
    """Single-channel label picture [H, W], 0-based: uint8 where all labels are below 256, else uint16."""
    return result.labels.astype(np.uint8) if result.labels.max(initial=0) < 256 else result.labels.astype(np.uint16)


Draw = Callable[["NDArray[np.uint8]", "Result"], "NDArray[np.uint8] | NDArray[np.uint16]"]
KINDS: dict[str, Draw] = {
    "overlay": draw_overlay,
    "labels": label_image,
    "segments": lambda frame, result: paint(result.labels),
}


def output_path(folder: Path, target: Path, kind: str) -> Path:
    """Where the picture of a kind goes: `<folder>/<target>_<kind>.png`."""
    return folder / target.parent / f"{target.name}_{kind}.png"


def write_png(path: Path, image: "NDArray[np.uint8] | NDArray[np.uint16]") -> None:
    """Write a PNG that carries the program's mark, whole or not at all.

    Raises DiffSegError naming the path when it cannot be written, or a picture is there that is not ours.
    """
    if path.exists() and not is_own_output(path):
        raise DiffSegError(f"{path}: exists and is not this program's; move it away or choose another --output")
    _, encoded = cv2.imencode(".png", image)
    data = encoded.tobytes()
    header = 8 + 25  # signature and IHDR
    mark = len(OWN_MARK) - 4
    chunk = mark.to_bytes(4, "big") + OWN_MARK + zlib.crc32(OWN_MARK).to_bytes(4, "big")
    try:
        write_atomically(path, data[:header] + chunk + data[header:])
    except OSError as error:
        raise DiffSegError(
            f"{path}: cannot be written ({error.strerror or error}); choose a folder you may write to, with "
            "space, by --output"
        ) from None

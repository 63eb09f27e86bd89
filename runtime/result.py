"""What a Segmenter gives: the result of a frame and its segments."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from runtime.errors import DiffSegError, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.words import Names


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a result, in pixels.

    Attributes:
        index: its label.
        area: number of pixels.
        box: x, y, width, height of the smallest upright rectangle around it.
        centroid: x, y of its centre of mass; (0, 0) is the centre of the frame's first pixel.
        name, score: its word, None where it has none, and the share of its best word; without words both are None.
    """

    index: int
    area: int
    box: tuple[int, int, int, int]
    centroid: tuple[float, float]
    name: str | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a Segmenter makes of one frame.

    Attributes:
        labels: int32 [H, W], the segment of every pixel of the frame, numbered 0 … count−1 without gaps.
        count: number of segments.
        milliseconds: wall time of each stage: resize, network, merge, labels, total. An engine with the head labels
            merges within the network's stage.
        proposals: on request, float32 [count, h, w]: the merged attention map of each segment; sums to 1.
        attention: on request, float32 [h·w, h·w]: the aggregated attention; row i is where token i looks.
        identities: from `stream` and a Tracker, int32 [count]: the identities in sight, ascending. Then the labels are
            these numbers, which stay with their objects from frame to frame and have gaps; None: they are 0 … count−1.
        frame: on request, the frame itself, uint8 [H, W, 3] BGR, not a copy.
        names: from an engine with words, the segments' words and their shares; `names[label]` is a word or None.
        words: from such an engine, float32 [words, h, w]: a map of each word, in the order of `names.words`, mean 1.
    """

    labels: NDArray[np.int32]
    count: int
    milliseconds: dict[str, float]
    proposals: NDArray[np.float32] | None = field(default=None, repr=False)
    attention: NDArray[np.float32] | None = field(default=None, repr=False)
    identities: NDArray[np.int32] | None = None
    frame: NDArray[np.uint8] | None = field(default=None, repr=False)
    names: Names | None = None
    words: NDArray[np.float32] | None = field(default=None, repr=False)

    def mask(self, index: int) -> NDArray[np.bool_]:
        """bool [H, W]: the pixels of a segment, given by its label. Raises IndexError for an unknown label."""
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)):
            raise IndexError(f"expected a label, which is a whole number, found {shown(index)}")
        if self.identities is not None and index not in self.identities:
            raise IndexError(f"expected an identity in sight, one of {self.identities.tolist()}, found {index}")
        if self.identities is None and not 0 <= index < self.count:
            raise IndexError(f"expected a segment from 0 to {self.count - 1}, found {index}")
        return self.labels == index

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Area, box and centroid of every segment, and its word, in the order of their labels."""
        from runtime.outputs.measure import measure

        names = self.names
        return tuple(
            Segment(
                label,
                area,
                tuple(box),
                (round(x, 2), round(y, 2)),
                None if names is None else names[label],
                None if names is None else names.score(label),
            )
            for label, area, box, (x, y) in zip(*(values.tolist() for values in measure(self.labels)), strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """For one line of JSON: `segments`, their number, and `regions`, a list of their index, area, box, centroid.

        From an engine with words a region has its `name` and `score`, too.
        """
        line: dict[str, Any] = {
            "segments": self.count,
            "regions": [
                {"index": s.index, "area": s.area, "box": list(s.box), "centroid": list(s.centroid)}
                | ({} if self.names is None else {"name": s.name, "score": s.score})
                for s in self.segments
            ],
        }
        if self.identities is not None:
            line["identities"] = self.identities.tolist()
        return line

    def to_coco(self, name: str = "") -> dict[str, Any]:
        """COCO's instances: `images` (this one, called `name`), `annotations` and `categories`.

        An annotation is a segment with its `label`, `area`, `bbox` and compressed RLE. `pycocotools.coco.COCO` takes it
        as its `dataset`. Raises DiffSegError where the extra `coco` is missing.
        """
        from runtime.outputs.coco import dataset

        return dataset(self.labels, name, self.names)

    def to_panoptic(self) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
        """COCO panoptic: the ids as a picture uint8 [H, W, 3] RGB, and `segments_info`.

        A segment's id is its label + 1, and R + 256·G + 65536·B in the picture; 0 is void.
        """
        from runtime.outputs.panoptic import encode_ids, segments_info

        return encode_ids(self.labels), segments_info(self.labels, self.names)

    def to_sam(self) -> list[dict[str, Any]]:
        """As Segment Anything's automatic masks: `segmentation` bool [H, W], `area`, `bbox` (x, y, width, height)."""
        return [
            {"segmentation": self.labels == segment.index, "area": segment.area, "bbox": list(segment.box)}
            for segment in self.segments
        ]

    def polygons(self) -> dict[int, list[list[NDArray[np.float32]]]]:
        """Label → its pieces; a piece is its outer ring and then its holes, float32 [n, 2] of x, y in pixels.

        (0, 0) is the upper left corner of the first pixel. Rings are within half a pixel of the labels' border, and
        every pixel's centre stays on its side; neighbours share their border.
        """
        from runtime.outputs.outlines import outlines

        return outlines(self.labels)

    def overlay(self) -> NDArray[np.uint8]:
        """The frame under its segments' colours and words, uint8 [H, W, 3] BGR.

        Where no frame was kept, the colours alone.
        """
        from runtime.outputs.draw import draw_overlay, paint
        from runtime.outputs.palette import Painter

        colours = Painter()(self.labels)
        if self.frame is None:
            return paint(self.labels, colours)
        return draw_overlay(self.frame, self.labels, colours=colours, names=self.names)

    def save(self, stem: str | Path, kinds: str = "overlay,labels", *, name: str | None = None) -> list[Path]:
        """Write what `--save KINDS` writes of a photograph: `<stem>_overlay.png` and so on. Returns the paths.

            segmenter(frame, keep_frame=True).save("out/cat", "overlay,labels,coco")

        The kinds coco and panoptic list the picture in the stem's folder as `name`, such as "cat.jpg", by default the
        stem's; they replace what is listed of the same stem. Each call writes the whole list anew: for many pictures
        use the command line.
        Raises DiffSegError where a kind is unknown or needs a frame that was not kept, or a file cannot be written.
        """
        from runtime.outputs.save import save_picture

        if not isinstance(stem, (str, Path)) or Path(stem).name in ("", "..") or str(stem).endswith(("/", os.sep)):
            raise DiffSegError(f"stem: expected a path such as 'out/cat', found {stem!r}")
        return save_picture(Path(stem), kinds, self.labels, self.frame, name, self.names)

    def plot(self, axes: Any = None) -> Any:
        """Draw the overlay with matplotlib, into `axes` or new ones, and return the axes.

        Raises DiffSegError where matplotlib is missing.
        """
        if axes is None:
            try:
                from matplotlib import pyplot
            except ImportError:
                raise DiffSegError("plot needs matplotlib: pip install matplotlib") from None
            axes = pyplot.figure().add_subplot()
        axes.imshow(self.overlay()[..., ::-1])
        axes.set_axis_off()
        axes.set_title(f"{self.count} segment{'' if self.count == 1 else 's'}")
        return axes

    def _repr_png_(self) -> bytes:
        """What notebooks show."""
        from runtime.outputs.png import encode_png

        return encode_png(self.overlay())


class Merged(NamedTuple):
    """What the merge gives.

    Attributes:
        raw: int32 [H, W] at the engine's size: the proposal that wins at every pixel.
        proposals: float32 [P, h·w], or None.
        attention: aggregated attention float32 [h·w, h·w], or None.
        words: float32 [words, h, w], a map per word whose mean is 1; None from an engine without words.
        alike: int [h, w]; pieces of one segment that the network sees as one have one number. None: not known.
    """

    raw: NDArray[np.int32]
    proposals: NDArray[np.float32] | None
    attention: NDArray[np.float32] | None
    words: NDArray[np.float32] | None = None
    alike: NDArray[np.intp] | None = None

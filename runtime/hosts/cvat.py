"""A function file for CVAT: `cvat-cli task auto-annotate TASK --function-file runtime/hosts/cvat.py`.

CVAT asks for objects and names. The segments of a frame are shapes of one label, "segment" unless the parameter `label`
says otherwise, which the task must have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cvat_sdk.auto_annotation as cvat
import numpy as np
from cvat_sdk.masks import encode_mask

from runtime.outputs.yolo import bridged
from runtime.refine.registry import DEFAULT_PIECES
from runtime.segmenter import Segmenter

if TYPE_CHECKING:
    import PIL.Image


class SegmentFunction:
    """A detection function: every segment is a mask, or its pieces are polygons where CVAT wants these."""

    def __init__(self, segmenter: Segmenter, label: str = "segment") -> None:
        self._segmenter = segmenter
        self.spec = cvat.DetectionFunctionSpec(labels=[cvat.label_spec(label, 0)])

    def detect(self, context: Any, image: PIL.Image.Image) -> list[Any]:
        """The shapes of a picture. Their label is the number 0 of `spec`."""
        frame = np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
        result = self._segmenter(frame)
        if context.conv_mask_to_poly:
            # CVAT's polygons have no holes: these are joined to the outer ring.
            return [
                cvat.polygon(0, bridged(piece).ravel().tolist())
                for pieces in result.polygons().values()
                for piece in pieces
            ]
        shapes = []
        for segment in result.segments:
            x, y, width, height = segment.box
            mask = result.labels == segment.index
            shapes.append(cvat.mask(0, encode_mask(mask, [x, y, x + width, y + height])))
        return shapes


def create(
    engine: str | None = None,
    device: str = "auto",
    threshold: float | None = None,
    refine: str = "none",
    min_area: float = 0,
    pieces: str = DEFAULT_PIECES,
    label: str = "segment",
) -> SegmentFunction:
    """What CVAT calls with the options `-p NAME=TYPE:VALUE`; they are those of the command line.

    Raises DiffSegError where the engine cannot be opened or an option is invalid.
    """
    segmenter = Segmenter.open(engine, device, thresholds=threshold, refine=refine, min_area=min_area, pieces=pieces)
    return SegmentFunction(segmenter, label)

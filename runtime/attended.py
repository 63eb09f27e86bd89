"""One frame whose attention maps are kept: segmented again, clicked on, and nested, without the network."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.errors import DiffSegError
from runtime.hierarchy import Hierarchy, merge_levels
from runtime.merge.kept import KeptMaps
from runtime.merge.registry import DEFAULT
from runtime.merge.suppress import suppress
from runtime.pyramid.config import every_iteration
from runtime.pyramid.mirror import looks_right, mirror_output
from runtime.pyramid.weights import resolution_ratios
from runtime.result import Merged
from runtime.routes.host import HostRoute
from runtime.stages import Stages

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.pyramid.config import MergeConfig
    from runtime.refine.refinement import Refinement
    from runtime.result import Result
    from runtime.routes.base import Route


@dataclass(frozen=True, slots=True)
class Clicked:
    """What is under a pixel.

    Attributes:
        index: the segment's label.
        mask: bool [H, W], the segment.
        attention: float32 [H, W]: where the pixel's token looks, its row of the aggregated attention resized to the
            frame bilinearly. At the size of the tokens it sums to 1.
    """

    index: int
    mask: NDArray[np.bool_] = field(repr=False)
    attention: NDArray[np.float32] = field(repr=False)


class _KeptRoute(HostRoute):
    """The route of one frame: on the host, also for an engine on a GPU, whose maps are valid until the next frame."""

    def __init__(self, route: Route, pyramid: list[NDArray[Any]]) -> None:
        super().__init__(route.engine, route.config, route.auto)
        ratios = resolution_ratios(route.config.weights, self.tokens, self.layers)
        self._turned = self.turns and looks_right(pyramid[0], self.tokens[0])
        if self._turned:
            pyramid = mirror_output(pyramid, self.tokens)
        self._kept = KeptMaps(pyramid, self.tokens, ratios, route.config.grid)

    def row(self, y: int, x: int) -> NDArray[np.float32]:
        """Where a token looks, float32 [h, w]; sums to 1."""
        h, w = self.tokens[0]
        own = self._kept.maps[y * w + (w - 1 - x if self._turned else x)].reshape(h, w) / (h * w)
        return own[:, ::-1] if self._turned else own

    def _merge(
        self,
        output: list[NDArray[Any]],
        config: MergeConfig,
        auto: bool,
        details: bool,
        seeds: NDArray[np.float32] | None,
    ) -> Merged:
        if config.solver != DEFAULT or auto:
            return super()._merge(output, config, auto, details, seeds)
        proposals = self._kept.propose(config.thresholds)
        spec = self.engine.spec
        return Merged(suppress(proposals, self.tokens[0], (spec.height, spec.width)), proposals, None)


class Attended:
    """A frame and its attention pyramid; `Segmenter.attend` makes it. Every method works without the network.

    Attributes:
        frame: uint8 [H, W, 3] BGR, not a copy.
        pyramid: the maps, float [n, n], one per resolution, finest first.
    """

    def __init__(self, stages: Stages, frame: NDArray[np.uint8]) -> None:
        """Run the network on a frame, uint8 [H, W, 3] BGR.

        Raises DiffSegError where the frame is invalid, or the engine has the head labels.
        """
        stages.route.check_maps("attend")
        route = stages.route
        batch = stages.gather([stages.resize(frame)])
        self.frame = frame
        self._output = [level[0] if len(level) == 1 else level[0].copy() for level in route.engine.infer(batch)]
        self.pyramid = self._output[: len(route.tokens)]
        try:
            self._route = _KeptRoute(route, self.pyramid)
        except ValueError as error:  # as for a map with a NaN
            raise DiffSegError(str(error)) from None
        self._stages = Stages(self._route, stages.refinement, stages.naming)
        self._last: tuple[tuple[float, ...] | None, Result] | None = None

    def labels(self, threshold: float | Iterable[float] | None = None) -> NDArray[np.int32]:
        """int32 [H, W], segments 0 … count−1, as a call of the Segmenter with this KL threshold gives them.

        `threshold`: one for all iterations, or one for each; None: the Segmenter's own. Raises DiffSegError where it is
        invalid.
        """
        return self.result(threshold).labels.copy()

    def result(self, threshold: float | Iterable[float] | None = None) -> Result:
        """The whole result, with its frame; see `labels`. The last one is kept: its labels are not to be changed."""
        chosen = None if threshold is None else every_iteration(threshold, None, self._route.config.thresholds)
        if self._last is None or self._last[0] != chosen:
            config = None if chosen is None else self._config(chosen)
            found = self._stages.finish(self._stages.merge(self._output, config=config), self.frame)
            self._last = chosen, replace(found, frame=self.frame)
        return self._last[1]

    def seen(
        self,
        frame: NDArray[np.uint8] | None = None,
        refinement: Refinement | None = None,
        route: Route | None = None,
    ) -> Attended:
        """The same attention for the same picture at another size, uint8 [H, W, 3] BGR, or refined in another way.

        `route`: whose thresholds and solver to use; its weights and its grid are those of the frame's own.
        """
        other = copy(self)
        other.frame = self.frame if frame is None else frame
        if route is not None:
            other._route = copy(self._route)
            other._route.config, other._route.auto = route.config, route.auto
        other._stages = Stages(other._route, refinement or self._stages.refinement)
        other._last = None
        return other

    def at(self, x: float, y: float, threshold: float | Iterable[float] | None = None) -> Clicked:
        """The segment and the attention of a pixel; (0, 0) is the first one. `threshold`: see `labels`.

        Raises DiffSegError where it is outside the frame.
        """
        height, width = self.frame.shape[:2]
        inside = all(
            isinstance(value, Real) and not isinstance(value, bool) and 0 <= value < side
            for value, side in ((x, width), (y, height))
        )
        if not inside:
            raise DiffSegError(
                f"expected a pixel of the frame, x from 0 to {width - 1} and y from 0 to {height - 1}, found "
                f"{x!r}, {y!r}; choose one inside"
            )
        column, row = int(x), int(y)
        labels = self.result(threshold).labels
        index = int(labels[row, column])
        return Clicked(index, labels == index, self._attention(row, column))

    def hierarchy(self, thresholds: Iterable[float] | None = None) -> Hierarchy:
        """Nested segmentations, see `Segmenter.hierarchy`."""
        return merge_levels(self._stages, self._output, self.frame, thresholds)

    def _attention(self, row: int, column: int) -> NDArray[np.float32]:
        height, width = self.frame.shape[:2]
        h, w = self._route.tokens[0]
        own = self._route.row(row * h // height, column * w // width)
        wide: Any = cv2.resize(own, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(wide, np.float32)

    def _config(self, thresholds: tuple[float, ...]) -> Any:
        try:
            return replace(self._stages.route.config, thresholds=thresholds)
        except ValueError as error:
            raise DiffSegError(str(error)) from None

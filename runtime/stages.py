"""One frame, stage by stage: resize → network → merge → labels at the frame's own size.

Each stage may run in a thread of its own, on another frame: `runtime.stream` overlaps them, a Segmenter's call runs one
after the other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.engine.base import no_words
from runtime.errors import DiffSegError
from runtime.frames.resize import resize_frame
from runtime.labels import count_pixels, relabel
from runtime.merge.suppress import renumber
from runtime.result import Merged, Result
from runtime.words import Naming, join_neighbours, joined_proposals, name_segments

if TYPE_CHECKING:
    from threading import Event

    from numpy.typing import NDArray

    from runtime.engine.base import Engine
    from runtime.refine.refinement import Refinement
    from runtime.routes.base import Route
    from runtime.words import Names


class Stages:
    """What is done to a frame. Use each stage from one thread at a time.

    Attributes:
        route: how the engine's output becomes labels.
        refinement: of the labels at the frame's own size.
        naming: how segments get words; None for an engine without words.
        asked: the threshold of the route is what somebody asked for; False: it is the engine's default "auto".
        frames: how many frames the network is best given at once.
    """

    def __init__(
        self, route: Route, refinement: Refinement, naming: Naming | None = None, *, asked: bool = True
    ) -> None:
        self.route, self.refinement, self.naming, self.asked = route, refinement, naming, asked
        self.frames = route.engine.frames_at_once

    def resize(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The frame at the engine's size. Raises DiffSegError when it is not uint8 [H, W, 3]."""
        check_frame(frame)
        spec = self.route.engine.spec
        return resize_frame(frame, spec.height, spec.width)

    def gather(self, resized: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Resized frames as the engine takes them, uint8 [B, H, W, 3]. The last one fills up a fixed batch."""
        missing = (self.route.engine.spec.batch or 0) - len(resized)
        if len(resized) == 1 and missing <= 0:
            return np.ascontiguousarray(resized[0])[None]
        return np.stack([*resized, *[resized[-1]] * missing])

    def prefetch(self, batch: NDArray[np.uint8]) -> None:
        """Begin to bring a batch to where the network runs, from any thread, while the network works on another.

        `network` must follow with this very array, unchanged. It saves time and changes nothing else.
        """
        self.route.engine.prefetch(batch)

    def stop_with(self, stopping: Event) -> None:
        """Give up long work, with a DiffSegError, once `stopping` is set. One frame is not long."""

    def network(self, batch: NDArray[np.uint8], count: int) -> list[Any]:
        """The network's output for each of the first `count` frames of a batch; `merge` takes one of them."""
        return self.route.network(batch)[:count]

    def merge(self, output: Any, **options: Any) -> Merged:
        """Labels at the engine's size. `options`: see `runtime.routes.base.Route.merge`."""
        return self.route.merge(output, **options)

    def finish(
        self, merged: Merged, frame: NDArray[np.uint8], *, proposals: bool = False, whole: bool = False
    ) -> Result:
        """The result at the frame's own size, refined and numbered without gaps; on request with its proposals.

        `whole`: segments in several pieces stay one, whatever the refinement says of pieces.
        """
        fitted: Any = cv2.resize(merged.raw, frame.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        tokens = self.route.tokens[0]
        fitted = self.refinement(fitted, frame, tokens)
        pieces = None if whole else self.refinement.split(fitted, alike=merged.alike)
        labels, count = renumber(fitted) if pieces is None else (pieces[0], len(pieces[1]))
        kept = None
        if proposals and merged.proposals is not None:
            present = np.flatnonzero(count_pixels(fitted)) if pieces is None else pieces[1]
            kept = merged.proposals[present].reshape(count, *tokens)
        return self.name(Result(labels, count, {}, kept, merged.attention, words=merged.words))

    def name(self, result: Result) -> Result:
        """The result with its segments' words, where it has the words' maps; neighbours of one word joined on request.

        Segments with identities are named and never joined.
        """
        names = self.names_of(result.labels, result.words)
        if self.naming is None or names is None or not self.naming.join or result.identities is not None:
            return replace(result, names=names)
        groups, count = renumber(join_neighbours(result.labels, names.indices()))
        proposals = result.proposals
        if proposals is not None:
            proposals = joined_proposals(proposals, count_pixels(result.labels), groups)
        labels = relabel(result.labels, groups)
        names = self.names_of(labels, result.words)
        return replace(result, labels=labels, count=count, proposals=proposals, names=names)

    def names_of(self, labels: NDArray[np.int32], words: NDArray[np.float32] | None) -> Names | None:
        """The words of segments, by `words`, a frame's maps of them; None without words."""
        return None if self.naming is None or words is None else name_segments(labels, words, self.naming)

    def __call__(
        self,
        frame: NDArray[np.uint8],
        resized: NDArray[np.uint8] | None = None,
        *,
        details: bool = False,
        proposals: bool = False,
        seeds: NDArray[np.float32] | None = None,
        output: Any = None,
    ) -> Result:
        """All stages, one after the other; `resized` and `output` are what the first ones gave, where they have run."""
        clock = Clock()
        if output is None:
            resized = self.resize(frame) if resized is None else resized
            clock("resize")
            output = self.network(self.gather([resized]), 1)[0]
        clock("network")
        merged = self.merge(output, proposals=proposals or details, details=details, seeds=seeds)
        clock("merge")
        result = self.finish(merged, frame, proposals=proposals or details)
        clock("labels")
        result.milliseconds.update(clock.milliseconds())
        return result

    def settings(self) -> dict[str, object]:
        """How labels are made: values that JSON has, by name."""
        config, engine = self.route.config, self.route.engine
        return {
            "engine": str(engine.path) if hasattr(engine, "path") else engine.spec.source,
            "source": engine.spec.source,
            **asdict(config),
            "auto": self.route.auto,
            "refine": list(self.refinement.names),
            "min_area": self.refinement.min_area,
            "pieces": self.refinement.pieces,
            **({"flip": True} if engine.flips else {}),
        } | ({} if self.naming is None else asdict(self.naming))

    def clone(self) -> Stages:
        """The same on a clone of the engine, for another thread."""
        return Stages(self.route.clone(), self.refinement, self.naming, asked=self.asked)

    def tracked(self, warm_start: bool = False) -> Stages:
        """The stages for a clip whose labels are identities, on the same engine.

        Segments keep their pieces, since an object behind a post is one object. No frame is turned
        (`runtime.routes.base.Route.turns`): where one is and the next is not, segments change. `warm_start`: the merge
        is to begin from the last frame's proposals, for which "auto", where it is only the engine's default, gives way.
        """
        route, refinement = self.fixed() if warm_start else self.route, replace(self.refinement, pieces="keep")
        if route.turns:
            route = copy(route)
            route.turns = False
        if route is self.route and refinement == self.refinement:
            return self
        return Stages(route, refinement, self.naming, asked=self.asked or warm_start)

    def fixed(self) -> Route:
        """The route; with the engine's thresholds, where "auto" is only its default."""
        if self.asked:
            return self.route
        route = copy(self.route)
        route.auto = False
        return route


class Clock:
    """Wall time from call to call, by name."""

    def __init__(self) -> None:
        self._times = [time.perf_counter()]
        self._names: list[str] = []

    def __call__(self, name: str) -> None:
        """What ran since the last call, or since the clock was made, is called `name`."""
        self._names.append(name)
        self._times.append(time.perf_counter())

    def milliseconds(self) -> dict[str, float]:
        """Of every part, and their "total"."""
        parts = np.diff(self._times) * 1e3
        found = {name: round(float(part), 3) for name, part in zip(self._names, parts, strict=True)}
        return found | {"total": round((self._times[-1] - self._times[0]) * 1e3, 3)}


def naming_of(engine: Engine, threshold: float | None, join: bool) -> Naming | None:
    """How segments are named; None for an engine without words.

    `threshold`: of `Naming`, None for the default. Raises DiffSegError where it is out of range, or an engine without
    words is asked for anything but the defaults.
    """
    words = engine.spec.words
    if words:
        return Naming(words, Naming(words).threshold if threshold is None else threshold, join)
    for name, given in (("word_threshold", threshold is not None), ("merge_words", join)):
        if given:
            raise DiffSegError(f"{name}: {no_words(engine.spec)}")
    return None


def check_frame(frame: Any) -> None:
    """Raise DiffSegError unless a frame is uint8 [H, W, 3] with at least one pixel."""
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise DiffSegError(f"expected a frame uint8 [H, W, 3] BGR, found {found}; read it with cv2.imread")
    if 0 in frame.shape:
        raise DiffSegError(f"expected a frame of at least one pixel, found {list(frame.shape)}")

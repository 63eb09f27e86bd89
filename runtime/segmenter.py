"""What Python users hold: open an engine, and give it frames, folders, clips."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runtime.engine.registry import open_engine
from runtime.errors import DiffSegError, check_iterable
from runtime.options import default_config, settle_options
from runtime.refine.refinement import Refinement
from runtime.refine.registry import DEFAULT_PIECES
from runtime.routes.registry import open_route
from runtime.stages import Stages, naming_of

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from runtime.attended import Attended
    from runtime.engine.base import Engine
    from runtime.hierarchy import Hierarchy
    from runtime.pyramid.config import MergeConfig
    from runtime.result import Result
    from runtime.track.tracker import TrackerConfig


class Segmenter:
    """DiffSeg on frames. Safe to use from one thread; `clone()` shares the weights with another.

    A context manager: leaving it closes the engine.
    """

    def __init__(
        self,
        engine: Engine,
        config: MergeConfig | None = None,
        *,
        refinement: Refinement | None = None,
        auto: bool = False,
        asked: bool = True,
        word_threshold: float | None = None,
        merge_words: bool = False,
    ) -> None:
        """Take an open engine, for the paper's merge and nothing after it. `open` has the defaults for photographs.

        `config` None: the thresholds and more that the engine was exported with. `refinement`: of the labels at the
        frame's own size. `auto`: segments are chosen for every frame from a hierarchy (`runtime.merge.parts`);
        `asked` False: not in tiles or with a warm start. `word_threshold`, `merge_words`: see `open`.
        Raises DiffSegError when the grid, the weights or the options of words do not fit the engine.
        """
        route = open_route(engine, config or default_config(engine.spec), auto)
        named = naming_of(engine, word_threshold, merge_words)
        self._stages: Stages | None = Stages(route, refinement or Refinement(), named, asked=asked)

    @property
    def stages(self) -> Stages:
        """What is done to a frame, stage by stage. Raises DiffSegError when the Segmenter is closed."""
        if self._stages is None:
            raise DiffSegError("this Segmenter is closed; open another one")
        return self._stages

    def __repr__(self) -> str:
        if self._stages is None:
            return "<Segmenter: closed>"
        engine, spec = self.engine, self.engine.spec
        name = engine.path.name if hasattr(engine, "path") else type(engine).__name__
        return f"<Segmenter: {name}, backend {engine.backend}, device {engine.device}, {spec.height}x{spec.width}>"

    @property
    def engine(self) -> Engine:
        """The engine."""
        return self.stages.route.engine

    @property
    def config(self) -> MergeConfig:
        """Parameters of the merge."""
        return self.stages.route.config

    @classmethod
    def open(
        cls,
        engine: str | Path | None = None,
        device: str = "auto",
        *,
        backend: str | None = None,
        thresholds: float | tuple[float, ...] | Literal["auto"] | None = None,
        iterations: int | None = None,
        grid: int | None = None,
        weights: str | tuple[float, ...] | None = None,
        solver: str | None = None,
        tau: float | None = None,
        alpha: float | None = None,
        refine: str = "none",
        min_area: float = 0,
        pieces: str = DEFAULT_PIECES,
        flip: bool = False,
        word_threshold: float | None = None,
        merge_words: bool = False,
        options: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> Segmenter:
        """Open an engine file (None: the embedded default) on a device: auto, cpu, cuda or cuda:N.

        Args:
            engine: an `.onnx` or a `.plan`.
            device: where to run.
            backend: the inference library, by its name; None: by the file, the device and what is installed.
            thresholds: one KL threshold for every iteration or one each, or "auto": segments follow from each frame.
                None: the engine's default, which may be "auto", as the embedded engine's, and then is the engine's
                numbers where `iterations`, another solver, tiles or a warm start is asked for.
            iterations: how many merge iterations.
            grid: anchors per axis.
            weights: of the resolutions, see `MergeConfig`.
            solver: how maps become segments: "merge" (the paper's), "kmeans", "ncut", "kcut". With the head features
                "ncut" alone.
            tau: of solvers that cut, see `MergeConfig`.
            alpha: likewise.
            refine: "kmeans" (the solver), "snap" (borders move to edges of the frame), or both with a comma.
            min_area: regions below this share of the frame, or from 1 this many pixels, go to their neighbours.
            pieces: "split": places that do not touch are segments of their own, and those below `min_area`, or 0.4 % of
                the frame, go to their neighbours; "unlike": the same, but with the threshold "auto" pieces that the
                network sees as one, because their mean maps are alike, stay one segment; "keep": all stay one segment,
                of whatever size. Levels of a hierarchy, and objects of a clip that have identities, always keep theirs.
            flip: the network also sees the frame's mirror image, left and right exchanged, for twice its time; maps are
                means of both, and a frame and its mirror image get the same segments. Not for the heads labels and
                features.
            word_threshold: of an engine with words: the least share that gives a segment its word, 0 … 1.
            merge_words: likewise: neighbours of one word become one segment.
            options: of the backend, such as {"threads": 2, "precision": "fp32"}; see
                `runtime.engine.registry.open_engine`.
            unknown: an error.

        What is left out comes from the engine's sidecar.
        Raises DiffSegError when the engine cannot be opened or an option is unknown or out of range.
        """
        if unknown:
            name = min(unknown)
            known = [word for word in inspect.signature(cls.open).parameters if word != "unknown"]
            like = difflib.get_close_matches(name, known, 1)
            advice = (
                f"did you mean {like[0]}?"
                if like
                else (f"an option of the backend goes into options={{{name!r}: {unknown[name]!r}}}")
            )
            raise DiffSegError(f"{name}: Segmenter.open has no such option; {advice}")
        if not isinstance(options, Mapping | None):
            raise DiffSegError(f"options: expected a dict such as {{'threads': 2}}, found {options!r}")
        opened = open_engine(engine, device, backend, flip=flip, **(options or {}))
        config, refinement, auto = settle_options(
            default_config(opened.spec),
            thresholds=thresholds,
            iterations=iterations,
            grid=grid,
            weights=weights,
            solver=solver,
            tau=tau,
            alpha=alpha,
            refine=refine,
            min_area=min_area,
            pieces=pieces,
            auto=opened.spec.auto,
        )
        words: dict[str, Any] = {"word_threshold": word_threshold, "merge_words": merge_words}
        return cls(opened, config, refinement=refinement, auto=auto, asked=not auto or thresholds is not None, **words)

    def __call__(
        self,
        frame: NDArray[np.uint8],
        *,
        details: bool = False,
        proposals: bool = False,
        seeds: NDArray[np.float32] | None = None,
        keep_frame: bool = False,
        tiles: str | tuple[int, int] | None = None,
    ) -> Result:
        """Segment one frame, uint8 [H, W, 3] BGR of any size.

        `details` adds proposals and aggregated attention; `proposals` the proposals alone, which costs nothing (None
        from an engine with the head labels). `seeds`: see `runtime.routes.base.Route.merge`.
        `keep_frame`: the result keeps the frame, so that it can be drawn and saved with it. `tiles`: of a large
        picture, "auto" or (rows, columns), see `runtime.tiles.layout`; it then has no details.
        Raises DiffSegError when the frame has another shape or type.
        """
        from runtime.tiles.tiled import in_tiles

        if details:
            self.stages.route.check_maps("details")
        result = in_tiles(self.stages, tiles)(frame, details=details, proposals=proposals, seeds=seeds)
        return replace(result, frame=frame) if keep_frame else result

    def map(
        self,
        inputs: Iterable[str | Path | NDArray[np.uint8]],
        *,
        errors: Literal["raise", "give"] = "raise",
        tiles: str | tuple[int, int] | None = None,
    ) -> Iterator[Result | DiffSegError]:
        """Segment photographs, each by itself, one result for each, in order.

        While the network works on one, others are decoded, resized, merged and refined in threads of their own; an
        engine that takes several frames at once is given several. Few are held in memory at a time. While results come,
        use a `clone` for other calls.

        Args:
            inputs: paths of pictures, or frames uint8 [H, W, 3] BGR; any iterable, read as it is needed.
            errors: what becomes of an input that cannot be read or segmented: "raise" ends with its DiffSegError,
                "give" yields that error in its place and goes on.
            tiles: as of a call.
        """
        from runtime.stream.photographs import map_photographs
        from runtime.tiles.tiled import in_tiles

        if errors not in ("raise", "give"):
            raise DiffSegError(f"errors: expected 'raise' or 'give', found {errors!r}")
        if isinstance(inputs, (str, Path)):
            raise DiffSegError(f"inputs: expected a list of paths or frames, found one path; pass [{str(inputs)!r}]")
        check_iterable(inputs, "inputs", "paths or frames")
        return map_photographs(in_tiles(self.stages, tiles), inputs, give=errors == "give")

    def stream(
        self,
        frames: Iterable[NDArray[np.uint8]],
        *,
        temporal: bool | TrackerConfig = True,
        every: int = 1,
        skip_similar: bool = False,
        warm_start: bool = False,
    ) -> Iterator[Result]:
        """Segment frame after frame of one clip, camera or stream, one result for each, in order.

        Args:
            frames: uint8 [H, W, 3] BGR; where their size changes, a new scene begins.
            temporal: labels are identities that stay with their objects (`runtime.track`); False: every frame by
                itself, exactly as a call gives it.
            every: the engine sees every so many frames; between them labels are carried along the optical flow.
            skip_similar: a frame like the last one that was segmented takes over its labels.
            warm_start: with `temporal`, the merge begins from the proposals of the frame before: half of its work for
                somewhat coarser segments.

        Raises:
            DiffSegError: where `every` is below 1, a frame is invalid, the extra `video` is missing, or an engine
                without maps is to start warm.
        """
        from runtime.stream.continuity import Continuity, follow

        check_iterable(frames, "frames", "frames")
        tracking = None if isinstance(temporal, bool) else temporal
        continuity = Continuity(
            self.stages,
            temporal=temporal is not False,
            every=every,
            skip_similar=skip_similar,
            warm_start=warm_start,
            tracker=tracking,
        )
        return follow(frames, continuity)

    def hierarchy(self, frame: NDArray[np.uint8], thresholds: Iterable[float] | None = None) -> Hierarchy:
        """Nested segmentations of one frame, uint8 [H, W, 3] BGR, from one pass of the network.

        `thresholds`: KL threshold of every level, in any order; None: nine, from a quarter of the engine's own to four
        times of it. The finest level is what a call with its threshold gives where pieces are kept, refinement
        included; the others are unions of its segments (`runtime.merge.grouping.group_proposals`). So a coarser level
        often has more segments than a call with its threshold: 23 and 11 for a photograph at 0.6, for example.
        Raises DiffSegError when the frame or a threshold is invalid, or the engine has the head labels.
        """
        from runtime.hierarchy import segment_levels

        return segment_levels(self.stages, frame, thresholds)

    def attend(self, frame: NDArray[np.uint8]) -> Attended:
        """Run the network on one frame, and keep its attention maps; see `runtime.attended.Attended`."""
        from runtime.attended import Attended

        return Attended(self.stages, frame)

    def clone(self) -> Segmenter:
        """A Segmenter for another thread, on the same weights."""
        other = Segmenter.__new__(Segmenter)
        other._stages = self.stages.clone()
        return other

    def close(self) -> None:
        """Let go of the engine. The Segmenter cannot be used any more."""
        self._stages = None

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""The map function: rows with images in, rows with segments out. Any engine of batches can call it; it knows none."""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from runtime.bulk.places import Place
from runtime.errors import DiffSegError, as_one_line
from runtime.frames.limits import check_bytes
from runtime.frames.source import Source
from runtime.frames.still import Still

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.segmenter import Segmenter
    from runtime.stream.frame import Job
    from runtime.stream.frame import Place as Written

Row = Mapping[str, Any]
IMAGE_KEYS = ("frame", "bytes", "path")
SAME = ("id", "path")  # what a row keeps


class SegmentBatch:
    """Segments batches of rows: a callable class for Ray's `map_batches`, Spark's `mapInPandas`, or a plain loop.

        segment = SegmentBatch("engines/sd15.onnx", device="cuda", thresholds=0.9)
        rows = segment([{"id": "cat", "path": "photos/cat.jpg"}])

    It holds one engine. Within a batch images are decoded, segmented and encoded at the same time, and an engine that
    takes several frames at once gets several. An image that cannot be segmented becomes a row with an `error`. Use an
    object from one thread at a time.

    Attributes:
        segmenter: the open engine with its settings.
        engine: hash of the engine's content.
        made: hash of engine, kind of device, version and settings, as in the index of `--resume`.
    """

    def __init__(self, engine: str | Path | Segmenter | None = None, device: str = "auto", **options: Any) -> None:
        """`engine`: a file, None for the embedded one, or an open Segmenter. The rest: see `Segmenter.open`.

        Raises DiffSegError as `Segmenter.open` does, and where pycocotools is missing.
        """
        if importlib.util.find_spec("pycocotools") is None:
            raise DiffSegError('SegmentBatch needs pycocotools: pip install "diffseg[bulk]"')
        from runtime.segmenter import Segmenter
        from runtime.stream.made import engine_of, how_made

        opened = engine if isinstance(engine, Segmenter) else Segmenter.open(engine, device, **options)
        self.segmenter = opened
        stages = opened.stages
        found = engine_of(stages)
        self.engine = str(found["engine"])
        self.made = how_made(found, stages, levels=None)
        settings = stages.settings()
        self.settings: dict[str, Any] = {**found, **settings}
        self.thresholds = None if settings["auto"] else list(map(float, opened.config.thresholds))

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width at which the engine takes frames, where it needs nothing else of them; None: it does."""
        spec = self.segmenter.engine.spec
        return None if self.segmenter.stages.refinement.names else (spec.height, spec.width)

    @overload
    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]: ...
    @overload
    def __call__(self, batch: Sequence[Row]) -> list[dict[str, Any]]: ...
    def __call__(self, batch: Mapping[str, Any] | Sequence[Row]) -> dict[str, list[Any]] | list[dict[str, Any]]:
        """Segment a batch: a dict of columns, as Ray gives it, or a list of dicts. The answer has the same form.

        Each row has one of `frame` (uint8 [H, W, 3] BGR), `bytes` (an encoded picture) and `path` (a path or URI), and
        may have an `id`, which is its `path` if left out. Rows out have the columns of README.md, in the same order.
        Raises DiffSegError where the batch has another form or no images.
        """
        if not isinstance(batch, Mapping):
            return list(self.rows(check_rows(batch)))
        from runtime.bulk.rows import COLUMNS

        columns = {str(name): list(values) for name, values in batch.items()}
        if len({len(values) for values in columns.values()}) > 1:
            raise DiffSegError("batch: expected columns of one length, found several lengths")
        count = len(next(iter(columns.values()), ()))
        rows = [{name: values[number] for name, values in columns.items()} for number in range(count)]
        found = list(self.rows(check_rows(rows, columns)))
        return {name: [row[name] for row in found] for name, _, _ in COLUMNS}

    def rows(
        self, rows: Iterable[Row], places: Callable[[Row], list[Written]] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Segment any number of rows, one after the other in their order; few are in memory at a time.

        A row may also have what a task before has made of it: `resized` (uint8 at the engine's size) with `height` and
        `width`, or an `error`. `places`: where each is written (`runtime.outputs.registry.picture_sinks`), in files.
        """
        from runtime.bulk.rows import result_row
        from runtime.stream.job import Stream

        waiting: deque[Row] = deque()

        def jobs() -> Iterator[Job]:
            for row in rows:
                job = _job(row)
                if places is not None and job.error is None:
                    job.places = places(row)
                waiting.append({name: row.get(name) for name in SAME})
                yield job

        pipeline = Stream(self.segmenter.stages).pipeline(jobs(), writes=places is not None)
        try:
            for job in pipeline:
                row = waiting.popleft()
                out = self.empty(row)
                try:
                    if job.error is not None or job.result is None:
                        raise job.error or DiffSegError("was not segmented")
                    out |= result_row(job.result)
                except DiffSegError as error:
                    check_harmless(error)
                    out["error"] = str(error)
                yield out
        finally:
            pipeline.abandon()

    def empty(self, row: Row) -> dict[str, Any]:
        """A row out that has no segments yet."""
        from runtime.bulk.rows import COLUMNS

        identity = row.get("id")
        path = row.get("path")
        return dict.fromkeys((name for name, _, _ in COLUMNS), None) | {
            "id": str(path if identity is None else identity),
            "path": None if path is None else str(path),
            "thresholds": self.thresholds,
            "engine": self.engine,
            "settings": self.made,
        }


def check_rows(rows: Any, columns: Mapping[str, Any] | None = None) -> Sequence[Row]:
    """Rows of a batch as they are. Raises DiffSegError where they are no dicts, or have no images."""
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Sequence):
        raise DiffSegError(f"batch: expected a dict of columns or a list of dicts, found {type(rows).__name__}")
    for row in rows:
        if not isinstance(row, Mapping):
            raise DiffSegError(f"batch: expected a dict for each row, found {type(row).__name__}")
    names = dict.fromkeys(name for row in ([columns] if columns is not None else rows[:1]) for name in row)
    if names and not set(names) & {*IMAGE_KEYS, "resized", "error"}:
        raise DiffSegError(
            f"batch: expected a column frame, bytes or path with the images, found {', '.join(map(str, names))}"
        )
    # pandas has NaN where a row has no text.
    return [{name: None if _is_nan(value) else value for name, value in row.items()} for row in rows]


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and value != value


def check_harmless(error: DiffSegError) -> None:
    """Raise an error after which no other row could be done either: no more space."""
    from runtime.errors import NoMoreSpace

    if isinstance(error, NoMoreSpace):
        raise error


def _job(row: Row) -> Job:
    """A row on its way through the stages. What is wrong with it is its error."""
    import numpy as np

    from runtime.stages import check_frame
    from runtime.stream.frame import Job

    if row.get("error") is not None:
        return Job(error=DiffSegError(str(row["error"])))
    try:
        if row.get("resized") is not None:
            # Of the frame itself only the size is needed: one byte that looks as large.
            shape = (int(row["height"]), int(row["width"]), 3)
            return Job(frame=np.broadcast_to(np.zeros((), np.uint8), shape), resized=np.asarray(row["resized"]))
        if row.get("frame") is not None:
            frame = np.asarray(row["frame"])
            check_frame(frame)
            return Job(frame=frame)
        return Job(still=Image(row))
    except Exception as error:
        return Job(error=as_one_line(error, str(row.get("id", "this row"))))


class Image(Still):
    """An encoded picture that is decoded later: of a row with `bytes` or `path`, which may be a URI."""

    def __init__(self, row: Row) -> None:
        """Raises DiffSegError where the row has neither."""
        data, path, given = row.get("bytes"), row.get("path"), row.get("id")
        if isinstance(data, (int, str)):  # bytes() makes so many of a number
            raise DiffSegError(f"{given}: expected an encoded picture in bytes, found {type(data).__name__}")
        if data is None and not isinstance(path, (str, Path)):
            raise DiffSegError(f"{given}: expected bytes or a path, found neither")
        self._remote: Place | None = None
        name = Path(str(given if path is None else path))
        if data is None and "://" in str(path):
            place = Place.of(str(path))
            self._remote, name = (None, Path(place.path)) if place.is_local else (place, Path(place.name))
        super().__init__(Source(name, Path(), data=None if data is None else bytes(data)))

    def pixels(self) -> int:
        """How many it will have; a guess where its first bytes do not say; 0 where nothing can be read."""
        self._fetch()
        return super().pixels()

    def read(self) -> NDArray[np.uint8]:
        """The frame, uint8 [H, W, 3] BGR. Raises DiffSegError when it cannot be read."""
        self._fetch()
        return super().read()

    def _fetch(self) -> None:
        place, self._remote = self._remote, None
        if place is not None:
            # An address, so that the name is not a path; with data it is not opened.
            super().__init__(Source(Path(), Path(), address=place.name, data=place.read(check_bytes)))


def decode(rows: Sequence[Row], size: tuple[int, int] | None, most: int | None = None) -> list[dict[str, Any]]:
    """Rows with `bytes` or `path` → rows with `resized`, `height` and `width`, or an `error`. Never raises for a row.

    `size`: height and width that the engine takes; None: the whole `frame` is kept instead. `most`: pixels that a
    picture may have.
    """
    from runtime.frames.limits import set_most_pixels
    from runtime.frames.resize import resize_frame

    if most is not None:
        set_most_pixels(most)
    found = []
    for row in rows:
        out: dict[str, Any] = {name: row.get(name) for name in SAME}
        if row.get("error") is not None:
            found.append(out | {"error": row["error"]})
            continue
        try:
            frame = Image(row).read()
            if size is None:
                out["frame"] = frame
            else:
                out |= {"resized": resize_frame(frame, *size), "height": frame.shape[0], "width": frame.shape[1]}
        except Exception as error:
            out["error"] = str(as_one_line(error, str(row.get("id"))))
        found.append(out)
    return found

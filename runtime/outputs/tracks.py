"""A clip's identities as YouTube-VIS lists them: a mask per frame for each, in one JSON file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from runtime.files import OWN_JSON, part_path
from runtime.outputs.categories import FIRST, categories
from runtime.outputs.failures import explain
from runtime.outputs.sinks import Sink

if TYPE_CHECKING:
    from fractions import Fraction
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from runtime.words import Names


class TracksSink(Sink):
    """`<stem>_instances.json`: one video, and an annotation for every identity, whose lists have an item per frame.

    Frames come one after the other, and are wanted identity by identity: until the end they are in a database beside
    the file, so the clip may be longer than memory.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        annotations: Callable[[NDArray[np.int32], Names | None], list[dict[str, Any]]],
        category: Mapping[str, object],
    ) -> None:
        """`name`: of the clip. `annotations`: of a frame's labels, with `label`, `segmentation`, `area` and `bbox`.

        `category`: what each category has beside its `id` and `name`. An identity has the word of most frames.
        """
        self.path, self._name, self._annotations, self._category = path, name, annotations, category
        self._words: tuple[str, ...] = ()
        self._part = part_path(path)
        self._store = part_path(path)
        self._base: sqlite3.Connection | None = None
        self._size = (0, 0)
        self._frames = 0

    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
    ) -> Any:
        """The frame's size, annotations and words."""
        words = () if names is None else names.words
        return (labels.shape[0], labels.shape[1]), self._annotations(labels, names), words

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Keep one frame's annotations."""
        self._size, annotations, self._words = prepared
        try:
            if self._base is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._base = sqlite3.connect(self._store, check_same_thread=False, isolation_level=None)
                self._base.execute("PRAGMA journal_mode = OFF")
                self._base.execute("PRAGMA synchronous = OFF")
                self._base.execute("PRAGMA temp_store = FILE")
                self._base.execute("CREATE TABLE frames (position INTEGER PRIMARY KEY, number INTEGER)")
                self._base.execute(
                    "CREATE TABLE masks (label INTEGER, position INTEGER, segmentation TEXT, bbox TEXT, area TEXT, "
                    "category INTEGER, "
                    "PRIMARY KEY (label, position)) WITHOUT ROWID"
                )
            self._base.execute("BEGIN")
            self._base.execute("INSERT INTO frames VALUES (?, ?)", (self._frames, number))
            rows = [
                (
                    one["label"],
                    self._frames,
                    *(json.dumps(one[column]) for column in ("segmentation", "bbox", "area")),
                    one.get("category_id", FIRST),
                )
                for one in annotations
            ]
            self._base.executemany("INSERT INTO masks VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._base.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from None
        self._frames += 1
        return self.path

    def close(self) -> None:
        """Assemble the file."""
        if self._base is None:
            return
        base, self._base = self._base, None
        try:
            if self._frames:
                with self._part.open("wb") as out:
                    for text in self._texts(base):
                        out.write(text.encode())
                self._part.replace(self.path)
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from None
        finally:
            base.close()
            self._part.unlink(missing_ok=True)
            self._store.unlink(missing_ok=True)

    def _texts(self, base: sqlite3.Connection) -> Iterator[str]:
        """The file, bit by bit."""
        height, width = self._size
        yield f'{{"info": {json.dumps(OWN_JSON)},\n"videos": [{{"id": 1, "name": {json.dumps(self._name)}, '
        yield f'"width": {width}, "height": {height}, "length": {self._frames}, "file_names": ['
        for position, (number,) in enumerate(base.execute("SELECT number FROM frames ORDER BY position")):
            yield f"{', ' if position else ''}{json.dumps(f'{self._name}/{number:06d}.jpg')}"
        yield ']}],\n"annotations": ['
        labels = base.execute("SELECT DISTINCT label FROM masks ORDER BY label")
        for index, (label,) in enumerate(labels):
            most = (
                "SELECT category FROM masks WHERE label = ? GROUP BY category ORDER BY COUNT(*) DESC, category LIMIT 1"
            )
            ((category,),) = base.execute(most, (label,))
            head = {"id": label + 1, "video_id": 1, "category_id": category, "iscrowd": 0, "label": label}
            yield f"{',' if index else ''}\n{json.dumps({**head, 'width': width, 'height': height})[:-1]}"
            for name, column in (("segmentations", "segmentation"), ("bboxes", "bbox"), ("areas", "area")):
                yield f', "{name}": ['
                yield from self._items(base, label, column)
                yield "]"
            yield "}"
        yield f'\n],\n"categories": {json.dumps(categories(self._words, self._category))}\n}}\n'

    def _items(self, base: sqlite3.Connection, label: int, column: str) -> Iterator[str]:
        """An item for every frame, null where the identity is not in sight."""
        rows = base.execute(f"SELECT position, {column} FROM masks WHERE label = ? ORDER BY position", (label,))
        at = 0
        for position, item in rows:
            yield ", " * bool(at) + "null, " * (position - at) + item
            at = position + 1
        yield (", null" if at else ", null"[2:]) * bool(self._frames - at) + ", null" * (self._frames - at - 1)

    def _failed(self, error: Exception) -> Exception:
        kept = f"{self._frames} frames were done"
        if isinstance(error, OSError):
            return explain(self.path, error, kept)
        full = OSError(28 if "full" in str(error) else 0, str(error))
        return explain(self.path, full, kept)

"""A clip whose frames come one by one: labels are identities, kept for as long as the clip is open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.frames.decode import decode_frame
from runtime.outputs.palette import Painter
from runtime.serve.bodies import check_picture
from runtime.stream.continuity import Continuity, follow

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from runtime.serve.forms import Form
    from runtime.stages import Stages


class Clip:
    """One clip. Use it from one thread at a time."""

    def __init__(self, stages: Stages, form: Form, **options: Any) -> None:
        """`form`: of the answers. `options`: see `runtime.stream.continuity.Continuity`, whose errors it raises."""
        self._sink = form.sink()
        self._painter = Painter()
        self._frame: NDArray[np.uint8] | None = None
        self._results = follow(self._frames(), Continuity(stages, **options))
        self._number = -1

    def _frames(self) -> Iterator[NDArray[np.uint8]]:
        while self._frame is not None:
            yield self._frame

    def segment(self, data: bytes) -> tuple[dict[str, Any], bytes]:
        """The next frame, encoded → a line about it, and the answer in the form asked for.

        Raises DiffSegError where the picture is invalid: the clip goes on with the next one.
        """
        check_picture(data)
        self._frame = decode_frame(data, "the picture")
        result = next(self._results)
        self._number += 1
        line = {"frame": self._number, "size": list(result.labels.shape), **result.to_json()}
        answer: bytes = self._sink.prepare(self._frame, result.labels, self._painter(result.labels))
        return line | {"milliseconds": result.milliseconds}, answer

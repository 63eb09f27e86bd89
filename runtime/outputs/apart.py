"""A movie that a child process encodes: what crashes or hangs an encoder ends there, and is one line here."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.children import pool
from runtime.children.channel import Channel
from runtime.errors import DiffSegError, NoMoreSpace
from runtime.files import part_path
from runtime.frames.apart import has_pyav
from runtime.frames.limits import most_pixels
from runtime.outputs.form import ClipForm
from runtime.outputs.sinks import Sink

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.outputs.draw import Draw
    from runtime.words import Names

TASK = "runtime.outputs.apart:serve_movie"
MEMORY = 256  # bytes a pixel that an encoder may hold: x264 looks some 40 frames ahead


def open_movie(path: Path, form: ClipForm, warn: Callable[[str], None], draw: Draw) -> Sink:
    """An .mp4 (`runtime.outputs.movie.VideoSink`), encoded in a child process where the system has what that needs.

    Raises DiffSegError where PyAV is missing.
    """
    if not pool.is_possible() or not has_pyav():
        from runtime.outputs.movie import VideoSink

        return VideoSink(path, form, warn, draw)
    return MovieApart(path, form, warn, draw)


class MovieApart(Sink):
    """A VideoSink in a child process. Where that ends before its time, what is in the file is kept."""

    def __init__(self, path: Path, form: ClipForm, warn: Callable[[str], None], draw: Draw) -> None:
        self._child: pool.Child | None = None
        self.path = path
        self._form, self._warn, self._draw = form, warn, draw
        self._part = part_path(path)
        self._here: Sink | None = None  # where no child can be started
        self._begin = self._last = Fraction(0)
        self._frames = 0

    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
    ) -> NDArray[np.uint8]:
        """The drawn picture, uint8 [H, W, 3] BGR."""
        return self._draw(frame, labels, colours=colours, names=names)

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Encode one picture, uint8 [H, W, 3] BGR, all of one size."""
        if self._child is None and self._here is None:
            self._open(prepared.shape[0] * prepared.shape[1])
            self._begin = time
        if self._here is not None:
            self._here.write(number, time, prepared)
            return self.path
        assert self._child is not None
        self._ask(time=str(time), number=number, **self._child.channel.put(prepared))
        self._frames += 1
        self._last = time
        return self.path

    def close(self) -> None:
        """Write what the encoder still holds, the sound and the index; move into place."""
        if self._here is not None:
            self._here.close()
        if self._child is not None:
            child = self._child
            try:
                self._ask(close=True)
            finally:
                self._child = None
            pool.give_back(child)

    def __del__(self) -> None:
        if self._child is not None:
            self._child.close()

    def _open(self, pixels: int) -> None:
        form = self._form
        audio = None if form.audio is None else [form.audio[0], str(form.audio[1])]
        try:
            begun = pool.begin_task(
                TASK,
                str(self.path),
                most_pixels(),
                pool.MEMORY + MEMORY * pixels,
                part=str(self._part),
                form=[str(form.rate), str(form.tick), str(form.aspect), audio],
            )
        except pool.Ended as end:
            raise pool.harmful(str(self.path), "encoder", end) from None
        if begun is None:
            from runtime.outputs.movie import VideoSink

            self._here = VideoSink(self.path, form, self._warn, self._draw, self._part)
        else:
            self._child = begun[0]

    def _ask(self, **message: object) -> None:
        """Send a message, and pass on what comes back."""
        child = self._child
        assert child is not None
        answer: dict[str, Any] | None = None
        try:
            child.send(**message)
            answer = child.answer()
            assert answer is not None
            answer = answer.get("done", answer)
            for line in answer.get("warn", []):
                self._warn(str(line))
            if "failed" in answer:
                raise (NoMoreSpace if answer.get("space") else DiffSegError)(str(answer["failed"]))
        except (pool.Ended, ValueError) as end:
            child.close()
            self._child = None
            kept = "nothing of it could be kept"
            if self._part.exists() and _salvage(self._part, self.path, self._last - self._begin):
                kept = f"what could be written of {self._frames} frames is kept"
            raise DiffSegError(f"{self.path}: the encoder {end}; {kept}") from None
        except DiffSegError:
            if answer is None:  # the task itself has ended
                self._child = None
                pool.give_back(child)
            elif "close" in message:
                pool.give_back(child)
            raise


def _salvage(part: Path, path: Path, seconds: Fraction) -> bool:
    """`runtime.outputs.movie.salvage` in another child process, which the file may crash as well."""
    try:
        begun = pool.begin_task(
            "runtime.outputs.apart:serve_salvage",
            str(path),
            most_pixels(),
            pool.MEMORY,
            part=str(part),
            seconds=str(seconds),
        )
    except (pool.Ended, DiffSegError):
        begun = None
    if begun is not None:
        pool.give_back(begun[0])
    part.unlink(missing_ok=True)
    return begun is not None and bool(begun[1]["done"])


def serve_movie(channel: Channel, name: str, part: str, form: list[Any]) -> dict[str, object]:
    """In the child: a VideoSink that gets its frames and its end through the channel."""
    from runtime.outputs.movie import VideoSink

    said: list[str] = []
    audio = None if form[3] is None else (form[3][0], Fraction(form[3][1]))
    kept = ClipForm(Fraction(form[0]), Fraction(form[1]), Fraction(form[2]), audio)
    sink = VideoSink(Path(name), kept, said.append, part=Path(part))
    channel.send(opened=True)
    while True:
        message = channel.receive()
        answer: dict[str, object] = {}
        try:
            if "close" in message:
                sink.close()
            else:
                sink.write(message["number"], Fraction(message["time"]), channel.view(message))
        except DiffSegError as error:
            answer |= {"failed": str(error), "space": isinstance(error, NoMoreSpace)}
        answer["warn"], said[:] = list(said), []
        if "close" in message:
            return answer
        channel.send(**answer)


def serve_salvage(channel: Channel, name: str, part: str, seconds: str) -> bool:
    """In the child: `salvage`."""
    from runtime.outputs.movie import salvage

    return salvage(Path(part), Path(name), Fraction(seconds))

"""Where a clip's results go: overlay videos with their sound, label pictures, label archives. Whole files only."""

from __future__ import annotations

import errno
import io
import re
import uuid
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.errors import DiffSegError
from runtime.outputs import OWN_ARCHIVE, OWN_BOX, is_own_output, write_png

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.video.sources import Clip

FINEST_TICK = 1_000_000  # ticks per second


class Sink(ABC):
    """An output of a clip. Frames come in order; `close` makes the file whole, whatever has come."""

    path: Path

    @abstractmethod
    def write(self, number: int, time: Fraction, image: NDArray[Any]) -> None:
        """Take the frame's picture. `number` from 0 without gaps; `time` in seconds, increasing."""

    @abstractmethod
    def close(self) -> None:
        """Finish, and move into place. Nothing is left where no frame has come."""


def refuse_foreign(path: Path) -> None:
    """Raise DiffSegError when a file, or a folder with numbered pictures, is there that is not this program's."""
    if path.is_dir():
        found = [p for p in path.iterdir() if re.fullmatch(r"\d{6,}\.png", p.name) and not is_own_output(p)]
        other: Path | None = min(found, default=None)
    else:
        other = path if path.exists() and not is_own_output(path) else None
    if other:
        raise DiffSegError(f"{other}: exists and is not this program's; move it away or choose another --output")


def _explain(path: Path, error: Any, kept: str) -> DiffSegError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else f"cannot be written ({error.strerror or error})"
    return DiffSegError(f"{path}: {what}; {kept}; choose a folder you may write to, with space, by --output")


class PngSink(Sink):
    """`<folder>/000000.png` and so on: one label picture per frame."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._count = 0

    def write(self, number: int, time: Fraction, image: NDArray[Any]) -> None:
        """Write one PNG, whole or not at all."""
        write_png(self.path / f"{number:06d}.png", image)
        self._count = number + 1

    def close(self) -> None:
        """Remove what a longer run before has left behind these frames."""
        if self._count and self.path.is_dir():
            for path in self.path.glob("*.png"):
                if re.fullmatch(r"\d{6,}", path.stem) and int(path.stem) >= self._count and is_own_output(path):
                    path.unlink(missing_ok=True)


class ArchiveSink(Sink):
    """A .npz for `numpy.load`: the labels [H, W] of every frame under its number, "000000", and "times" in seconds.

    Each frame is compressed when it comes, so the archive may be longer than memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(f".{uuid.uuid4().hex}.part")
        self._zip: zipfile.ZipFile | None = None
        self._times: list[float] = []

    def write(self, number: int, time: Fraction, image: NDArray[Any]) -> None:
        """Add one frame's labels, uint8 or uint16."""
        try:
            if self._zip is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._zip = zipfile.ZipFile(self._part, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
                self._zip.comment = OWN_ARCHIVE
            self._add(self._zip, f"{number:06d}", image)
        except OSError as error:
            raise _explain(self.path, error, f"{len(self._times)} frames were done") from None
        self._times.append(float(time))

    def close(self) -> None:
        """Add the times and write the directory."""
        if self._zip is None:
            return
        archive, self._zip = self._zip, None
        try:
            if self._times:
                self._add(archive, "times", np.array(self._times))
            archive.close()
            if self._times:
                self._part.replace(self.path)
        except OSError as error:
            raise _explain(self.path, error, "the archive could not be finished") from None
        finally:
            self._part.unlink(missing_ok=True)

    @staticmethod
    def _add(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
        data = io.BytesIO()
        np.save(data, array)
        archive.writestr(f"{name}.npy", data.getbuffer())


@dataclass(frozen=True, slots=True)
class VideoForm:
    """What of its clip a video keeps: average rate, tick in seconds, shape of pixels, sound."""

    rate: Fraction
    tick: Fraction
    aspect: Fraction = Fraction(1)
    audio: tuple[str, Fraction] | None = None

    @classmethod
    def of(cls, clip: Clip) -> VideoForm:
        """As the clip is."""
        from runtime.video.sources import DEFAULT_RATE

        return cls(clip.rate or DEFAULT_RATE, clip.tick, clip.aspect, clip.audio)


class VideoSink(Sink):
    """An H.264 .mp4 with the clip's own times and sound.

    Written in fragments under a temporary name, which become an ordinary file at the end: whatever happens, what has
    been written can be played. Sides are even in this format: an odd one is a pixel longer, its last row repeated.
    """

    def __init__(self, path: Path, form: VideoForm, warn: Callable[[str], None] = lambda line: None) -> None:
        av = _av()
        self.path = path
        self._form = form
        self._warn = warn
        self._codec = next(name for name in ("libx264", "libopenh264", "mpeg4") if name in av.codecs_available)
        self._part = path.with_name(f".{uuid.uuid4().hex}.part")
        self._container: Any = None
        self._begin = Fraction(0)
        self._end = Fraction(0)
        self._frames = 0
        self._broken = False

    def write(self, number: int, time: Fraction, image: NDArray[np.uint8]) -> None:
        """Encode one frame, uint8 [H, W, 3] BGR, all of one size."""
        av = _av()
        if image.shape[0] % 2 or image.shape[1] % 2:
            odd = (image.shape[0] % 2, image.shape[1] % 2)
            image = cv2.copyMakeBorder(image, 0, odd[0], 0, odd[1], cv2.BORDER_REPLICATE).astype(np.uint8, copy=False)
        try:
            if self._container is None:
                self._begin = time
                self._open(image.shape[1], image.shape[0])
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.time_base = self._tick
            frame.pts = round((time - self._begin) / self._tick)
            # How long the last frame lasts; all others last until the next.
            frame.duration = max(1, round(1 / self._form.rate / self._tick))
            self._container.mux(self._stream.encode(frame))
            self._frames += 1
            self._end = time + 1 / self._form.rate
            self._audio.until(time)
        except (av.FFmpegError, OSError) as error:
            self._broken = True
            raise _explain(self.path, error, f"{self._frames} frames were done") from None

    def _open(self, width: int, height: int) -> None:
        av = _av()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(
            str(self._part),
            "w",
            format="mp4",
            options={"movflags": "hybrid_fragmented+negative_cts_offsets"},
        )
        options = {"preset": "veryfast", "crf": "20"} if self._codec == "libx264" else {}
        stream = self._stream = self._container.add_stream(self._codec, rate=self._form.rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        tick = self._form.tick
        self._tick = tick if tick.denominator <= FINEST_TICK else Fraction(1, 90_000)
        stream.codec_context.time_base = self._tick
        # A key frame every two seconds: each closes a fragment.
        stream.codec_context.gop_size = max(1, min(250, round(2 * self._form.rate)))
        if self._form.aspect != 1:
            stream.codec_context.sample_aspect_ratio = self._form.aspect
        from runtime.video.audio import AudioCopy, Silence

        self._audio: AudioCopy | Silence = Silence()
        if self._form.audio:
            source, origin = self._form.audio
            try:
                self._audio = AudioCopy(source, self._container, origin, self._begin)
            except (av.FFmpegError, ValueError) as error:
                self._warn(f"{self.path}: the sound is left out ({getattr(error, 'strerror', None) or error})")

    def close(self) -> None:
        """Write what the encoder still holds, the sound up to the last frame and the index; move into place."""
        if self._container is None:
            return
        av = _av()
        container, self._container = self._container, None
        failure = None
        try:
            if not self._broken:
                container.mux(self._stream.encode(None))
                self._audio.until(self._end)
        except (av.FFmpegError, OSError) as error:
            failure = error
        try:
            self._audio.close()
            container.close()
        except (av.FFmpegError, OSError) as error:
            failure = failure or error
        try:
            if not self._frames:
                self._part.unlink(missing_ok=True)
                return
            with self._part.open("ab") as file:
                file.write(OWN_BOX)
        except OSError as error:
            failure = failure or error
        if failure is not None:
            kept = f"what could be written of {self._frames} frames is kept"
            if not _readable(self._part):
                self._part.unlink(missing_ok=True)
                kept = "nothing of it could be kept"
            else:
                self._part.replace(self.path)
            if not self._broken:  # otherwise it has been said
                raise _explain(self.path, failure, kept) from None
        else:
            self._part.replace(self.path)


def _readable(path: Path) -> bool:
    av = _av()
    try:
        with av.open(str(path)) as container:
            return next(container.decode(video=0), None) is not None
    except (av.FFmpegError, OSError, IndexError):
        return False


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise DiffSegError(
            'writing video needs PyAV; install it by pip install "diffseg[video]", or leave out overlay and segments '
            "by --save labels"
        ) from None
    return av

"""The overlay as a video: exact times, the clip's sound, and a file that can be played however it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from runtime.errors import DiffSegError
from runtime.files import OWN_BOX, part_path
from runtime.frames.media import FILE
from runtime.outputs.failures import explain
from runtime.outputs.form import ClipForm
from runtime.outputs.sinks import Sink

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.outputs.draw import Draw
    from runtime.words import Names

FINEST_TICK, USUAL_TICK = Fraction(1, 1_000_000), Fraction(1, 90_000)  # seconds
HIGHEST_RATE = Fraction(1000)  # frames per second that are told to the encoder
# The .mp4 counts in ticks of at least 10,000 a second. FFmpeg ends the process where a frame lasts 2^31 of them.
MOST_TICKS, LEAST_SCALE = 1 << 28, 10_000
_BT601, _LIMITED = 6, 1  # FFmpeg's AVCOL_SPC_SMPTE170M and AVCOL_RANGE_MPEG: what BGR frames are converted to
_HEAD = 1 << 16  # bytes: more than what precedes the first fragment


class VideoSink(Sink):
    """An H.264 .mp4 with the clip's own times and sound.

    Written in fragments under a temporary name, which become an ordinary file at the end: whatever happens, what has
    been written can be played. Sides are even in this format: an odd one is a pixel longer, its last row repeated.
    """

    def __init__(
        self,
        path: Path,
        form: ClipForm,
        warn: Callable[[str], None] = lambda line: None,
        draw: Draw | None = None,
        part: Path | None = None,
    ) -> None:
        """`warn` is told what is left out. `draw`: None: the overlay. `part`: a temporary name."""
        av = _av()
        self.path = path
        self._form = form
        self._warn, self._draw = warn, draw
        tick = Fraction(1, form.tick.denominator)
        self._tick = tick if tick >= FINEST_TICK else USUAL_TICK
        scale = self._tick.denominator
        while scale < LEAST_SCALE:
            scale *= 2
        self._longest = int(MOST_TICKS / scale / self._tick)
        self._rate = min(max(form.rate, 1 / (self._longest * self._tick)), HIGHEST_RATE)
        self._codec = next(name for name in ("libx264", "libopenh264", "mpeg4") if name in av.codecs_available)
        self._part = part or part_path(path)
        self._container: Any = None
        self._begin = Fraction(0)
        self._end = Fraction(0)
        self._frames = 0
        self._packets = 0
        self._broken = False
        self._last = -1  # the last frame's time, in ticks
        self._shortened = Fraction(0)  # seconds by which pauses were made shorter

    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
    ) -> NDArray[np.uint8]:
        """The drawn picture, uint8 [H, W, 3] BGR."""
        if self._draw is None:
            from runtime.outputs.draw import draw_overlay

            self._draw = draw_overlay
        return self._draw(frame, labels, colours=colours, names=names)

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Encode one picture, uint8 [H, W, 3] BGR, all of one size."""
        av = _av()
        image: NDArray[np.uint8] = prepared
        if image.shape[0] % 2 or image.shape[1] % 2:
            image = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), "edge")
        try:
            if self._container is None:
                self._begin = time
                self._open(image.shape[1], image.shape[0])
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.time_base = self._tick
            frame.pts = self._place(time)
            # How long the last frame lasts; all others last until the next.
            frame.duration = max(1, round(1 / self._rate / self._tick))
            self._mux(frame)
            self._frames += 1
            self._end = time + 1 / self._rate
            if not self._shortened:
                self._audio.until(time)
        except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
            self._broken = True
            raise explain(self.path, error, f"{self._frames} frames were done") from None
        return self.path

    def _place(self, time: Fraction) -> int:
        """Where a frame goes, in ticks: after the last one, and not after a longer pause than the format can hold."""
        wanted = round((time - self._begin - self._shortened) / self._tick)
        most = self._last + self._longest
        if self._last >= 0 and wanted > most:
            if not self._shortened:
                pause, kept = float((wanted - self._last) * self._tick), float(self._longest * self._tick)
                rest = "; the sound after it is left out" if self._form.audio else ""
                self._warn(
                    f"{self.path}: a pause of {pause:.0f} s is shortened to {kept:.0f} s, the longest here{rest}"
                )
            self._shortened += (wanted - most) * self._tick
            wanted = most
        self._last = max(wanted, self._last + 1)
        return self._last

    def _mux(self, frame: Any) -> None:
        """Encode a frame, None for the end, and write what the encoder gives."""
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
            self._packets += 1

    def _open(self, width: int, height: int) -> None:
        from runtime.outputs.audio import AudioCopy, Silence

        av = _av()
        self._audio: AudioCopy | Silence = Silence()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._container = av.open(
                f"{FILE}{self._part}",
                "w",
                format="mp4",
                # The edit list lets the sound begin where it did: a packet rarely begins with a picture.
                options={
                    "movflags": "hybrid_fragmented+negative_cts_offsets",
                    "use_editlist": "1",
                    "flush_packets": "1",  # each fragment is on the disk at once, whatever becomes of this process
                },
            )
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise
        options = {"preset": "veryfast", "crf": "20"} if self._codec == "libx264" else {}
        stream = self._stream = self._container.add_stream(self._codec, rate=self._rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Said, because players take an HD video that says nothing for BT.709, and its colours would be off.
        stream.codec_context.colorspace, stream.codec_context.color_range = _BT601, _LIMITED
        stream.codec_context.time_base = self._tick
        # A key frame every second: each closes a fragment, and what is not closed is in memory only.
        stream.codec_context.gop_size = max(1, min(250, round(self._rate)))
        if self._form.aspect != 1:
            stream.codec_context.sample_aspect_ratio = self._form.aspect
        try:
            stream.codec_context.open(strict=False)
        except av.FFmpegError as error:
            why = error.strerror if max(width, height) <= 16384 else "x264: sides of up to 16384"
            what = f"{self.path}: the encoder takes no frames of {width}x{height} pixels ({why})"
            self._broken = True
            raise DiffSegError(f"{what}; make the clip smaller, or leave out its movies: --save labels") from None
        if self._form.audio:
            source, origin = self._form.audio
            try:
                self._audio = AudioCopy(source, self._container, origin, self._begin)
            except (av.FFmpegError, ValueError, OverflowError) as error:
                self._warn(f"{self.path}: the sound is left out ({getattr(error, 'strerror', None) or error})")

    def close(self) -> None:
        """Write what the encoder still holds, the sound up to the last frame and the index; move into place."""
        if self._container is None:
            return
        av = _av()
        failure: Exception | None = None
        try:
            self._mux(None)
            if not self._shortened:
                self._audio.until(self._end)
        except (av.FFmpegError, OSError, ValueError) as error:
            failure = error
        try:
            self._audio.close()
        except (av.FFmpegError, OSError) as error:
            failure = failure or error
        if self._audio.lost:
            self._warn(f"{self.path}: {self._audio.lost}")
        # Closing turns fragments into an ordinary file, from its end to its head. On a full disk it gets half way.
        container, self._container = self._container, None
        if not self._packets:  # FFmpeg would end the process
            del container, self._stream, self._audio
            self._part.unlink(missing_ok=True)
            if failure is not None and not self._broken:
                raise explain(self.path, failure, "nothing of it could be kept")
            return
        with self._part.open("rb") as file:
            head, length = file.read(_HEAD), file.seek(0, os.SEEK_END)
        try:
            container.close()
            whole = True
            with self._part.open("ab") as file:
                file.write(OWN_BOX)
        except (av.FFmpegError, OSError) as error:
            failure, whole = failure or error, False
        if whole and _readable(self._part):
            self._part.replace(self.path)
            if failure is not None and not self._broken:
                raise explain(self.path, failure, f"what could be written of {self._frames} frames is kept") from None
        else:
            self._keep_fragments(head, length, failure)

    def _keep_fragments(self, head: bytes, length: int, failure: Exception | None) -> None:
        """Put the file back to what it was before it was closed; needs no room on the disk."""
        kept = "nothing of it could be kept"
        if salvage(self._part, self.path, self._end - self._begin - self._shortened, head, length):
            kept = f"what could be written of {self._frames} frames is kept"
        if failure is not None and not self._broken:  # otherwise it has been said
            raise explain(self.path, failure, kept) from None


def salvage(part: Path, path: Path, seconds: Fraction, head: bytes | None = None, length: int | None = None) -> bool:
    """Make what was written of a movie one that can be played, and move it from `part` to `path`; whether that is so.

    `seconds`: how long it is. `head`, `length`: how the file began and how long it was before it was closed; None:
    it was not. What cannot be played is removed. Raises OSError where it cannot be written.
    """
    with part.open("r+b") as file:
        head = file.read(_HEAD) if head is None else head
        file.seek(0)
        file.write(_with_edits(head, seconds))
        if length is not None:
            file.truncate(length)
        file.truncate(_end_of_fragments(file))
        file.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError):  # the cut has made room, as a rule
            file.write(OWN_BOX)
    whole = _readable(part)
    part.replace(path) if whole else part.unlink(missing_ok=True)
    return whole


def _with_edits(head: bytes, length: Fraction) -> bytes:
    """The head of an .mp4 in fragments, whose edit lists are given a length in seconds.

    They have none before the file is closed, and players then leave out what the first fragment holds.
    """
    patched = bytearray(head)
    end = head.find(b"mdat")
    scale = head.find(b"mvhd", 0, end) + 16  # name, version, two times
    duration = round(length * int.from_bytes(head[scale : scale + 4], "big")) + 1
    edit = head.find(b"elst", 0, end)
    while edit >= 0:
        if head[edit + 4] == 0 and not any(head[edit + 12 : edit + 16]):  # version; after the count, the first length
            patched[edit + 12 : edit + 16] = min(duration, 0x7FFFFFFF).to_bytes(4, "big")
        edit = head.find(b"elst", edit + 4, end)
    return bytes(patched)


def _end_of_fragments(file: BinaryIO) -> int:
    """Where the last whole fragment of an .mp4 ends: its boxes are a length, a name and what they hold."""
    length = file.seek(0, os.SEEK_END)
    position = end = 0
    while position + 8 <= length:
        file.seek(position)
        size, name = int.from_bytes(file.read(4), "big"), file.read(4)
        if size == 1:
            size = int.from_bytes(file.read(8), "big")
        position += max(size, 8)
        if name == b"mdat" and position <= length:
            end = position
    return end


def _readable(path: Path) -> bool:
    av = _av()
    try:
        with av.open(f"{FILE}{path}") as container:
            return next(container.decode(video=0), None) is not None
    except (av.FFmpegError, OSError, IndexError):
        return False


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise DiffSegError(
            'writing video needs PyAV; install it by pip install "diffseg[video]", or leave out overlay and segments '
            "by --save labels --temporal off"
        ) from None
    return av

"""Video files and network streams through PyAV: exact times, rotation, and reports of damage."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from threading import Event
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from runtime.errors import DiffSegError
from runtime.frames.clip import DEFAULT_RATE, Clip, Picture
from runtime.frames.limits import LARGE_FRAME, check_pixels, most_pixels
from runtime.frames.media import is_url, open_media, packets_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACED = ("rtsp", "rtmp", "rtp", "udp:", "srt:")  # protocols where the server sets the pace
# Formats whose header gives the length. For others FFmpeg guesses it from the file's size.
MEASURED = {"matroska", "webm", "avi", "flv", "asf", "mov", "mp4"}
FINEST_TICK = 1_000_000  # ticks per second
# A header may say anything. What is outside these bounds counts as not said.
RATES = (Fraction(1, 86_400), Fraction(1000))  # frames per second
ASPECTS = (Fraction(1, 64), Fraction(64))  # width of a pixel divided by its height
LATEST = (1 << 62) - 1  # in ticks


class ContainerClip(Clip):
    """A video file or URL."""

    def __init__(self, address: str, name: str, start: Fraction = Fraction(0)) -> None:
        """Open `file:PATH` or a URL, and enter a file shortly before `start`, in seconds.

        `name`: for messages, without a password. Raises DiffSegError when it is not a video.
        """
        super().__init__(name)
        url = is_url(address)
        try:
            self._container = open_media(address)
        except (av.FFmpegError, IndexError, ValueError, OverflowError) as error:  # PyAV's own, on a damaged file
            if url:
                raise DiffSegError(f"{name}: cannot be opened ({_reason(error)})") from None
            raise DiffSegError(
                f"{name}: is not a video that can be read, or is damaged or cut short ({_reason(error)})"
            ) from None
        pictures = av.stream.Disposition.attached_pic  # the cover picture of a music file
        streams = [stream for stream in self._container.streams.video if not stream.disposition & pictures]
        if not streams:
            held = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            raise DiffSegError(f"{name}: has no video; it has {held}")
        stream = self._stream = streams[0]
        if stream.codec_context is None:
            raise DiffSegError(f"{name}: its video is of a kind that PyAV {av.__version__} cannot decode")
        pixels = self.pixels = stream.width * stream.height
        try:
            check_pixels(pixels, name)
        except DiffSegError:
            self._container.close()
            raise
        stream.codec_context.options = {"max_pixels": str(most_pixels())}  # of frames that are larger than the first
        stream.thread_type = "AUTO" if pixels < LARGE_FRAME else "SLICE"
        self.rate = _sane(stream.average_rate, RATES) or _sane(stream.guessed_rate, RATES)
        unit = Fraction(stream.time_base or self.tick)
        self.tick = Fraction(1, unit.denominator) if unit.denominator <= FINEST_TICK else self.tick
        length = self._container.duration
        self.seconds = length / av.time_base if length and length > 0 else None
        self.live = url and (self.seconds is None or address.lower().startswith(PACED))
        self.aspect = _sane(stream.sample_aspect_ratio, ASPECTS) or Fraction(1)
        self._origin = None if stream.start_time is None else stream.start_time * unit
        if self._container.streams.audio and not self.live:
            self.audio = (address, self._origin or Fraction(0))
        # Below a second, decoding from the beginning is as fast. Without a rate, frames could not be numbered.
        if start > 1 and not self.live and self._origin is not None and self.rate:
            self._container.seek(min(int((self._origin + start) / unit), LATEST), stream=stream)
            self.gaps = True

    def read(self, stop: Event) -> Iterator[Picture]:
        """Frames in the order in which they are shown. `lost` says what could not be decoded."""
        unit = Fraction(self._stream.time_base or self.tick)
        step = 1 / (self.rate or DEFAULT_RATE)
        moment = -step
        damaged = packets = 0
        end = Fraction(0)
        failure = None
        demuxed = packets_of(self._container, self._stream, *self._container.streams.audio)
        try:
            while not stop.is_set():
                try:
                    packet = next(demuxed, None)
                except av.FFmpegError as error:
                    # The rest of the file cannot be read; the decoder still holds frames.
                    failure, packet = _reason(error), None
                if packet is not None and packet.pts is not None and packet.time_base:
                    end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                if packet is not None and packet.stream_index != self._stream.index:
                    continue
                try:
                    frames = self._stream.decode(packet) if packet is None or packet.size else []
                except av.FFmpegError:
                    damaged += packet is not None
                    frames = []
                packets += packet is not None and bool(packet.size)
                for frame in frames:
                    damaged += frame.is_corrupt
                    if frame.pts is not None:
                        if self._origin is None:
                            self._origin = frame.pts * unit
                        moment = frame.pts * unit - self._origin
                    else:
                        moment += step
                    yield round(moment / self.tick) * self.tick, self._upright(frame)
                if packet is None:
                    self._note_what_is_missing(packets, end, failure)
                    break
        finally:
            if damaged:
                self.lost.append(f"{damaged} frame{'s are' if damaged > 1 else ' is'} damaged")

    def _upright(self, frame: Any) -> NDArray[np.uint8]:
        image = frame.to_ndarray(format="bgr24")
        turns = round(frame.rotation / 90) % 4  # counter-clockwise, as rot90 counts
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def _note_what_is_missing(self, packets: int, end: Fraction, failure: str | None) -> None:
        """Compare what was read with what the header says; note in `lost` what is missing."""
        expected = 0 if self.gaps else self._stream.frames
        began = Fraction(self._container.start_time or 0, av.time_base)
        length = Fraction(self._container.duration or 0, av.time_base)
        short = bool(MEASURED & set(self._container.format.name.split(","))) and end - began < length - Fraction(1, 2)
        if failure:
            self.lost.append(f"reading stopped after {float(end - began):.1f} s ({failure})")
        elif expected and packets < expected:
            self.lost.append(f"the file is cut short: {packets} of {expected} frames are there")
        elif not expected and short:
            self.lost.append(f"the file is cut short: {float(end - began):.1f} of {float(length):.1f} s are there")

    def close(self) -> None:
        """Close the file."""
        self._container.close()


def _sane(value: Fraction | None, bounds: tuple[Fraction, Fraction]) -> Fraction | None:
    """A ratio that a header gives, if it is within bounds. FFmpeg takes terms below 2^31."""
    if not value or not bounds[0] <= value <= bounds[1]:
        return None
    return Fraction(value).limit_denominator(1 << 20)


def _reason(error: Any) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)

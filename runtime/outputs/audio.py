"""The sound of a clip, carried over into its overlay: copied where the format allows, encoded anew where not.

The pictures never suffer from it: sound that cannot be kept is left out, and `lost` says so.
"""

from __future__ import annotations

import errno
import io
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from operator import methodcaller
from typing import Any

import av

from runtime.frames.media import open_media, packets_of

# What players expect in an .mp4, by FFmpeg's name of the codec; anything else becomes AAC. E-AC-3 is not copied: the
# head of an .mp4 in fragments describes it, and is written before its first packet is known.
COPIED = {"aac", "mp3", "ac3", "alac", "opus", "flac"}
MOST_SECONDS = 1200  # between two packets: FFmpeg ends the process where a packet lasts 2^31 samples
RATES = range(8000, 192_001)  # samples per second that an .mp4 may say
USUAL_RATE = 48_000  # which the encoder always takes
OVERLAP = Fraction(1, 10)  # seconds: sound that begins so much before the end of what is written is moved behind it
# What the system says where nothing more can be written: the pictures fail of it, too.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class Silence:
    """A clip without sound."""

    lost = ""

    def until(self, time: Fraction) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class AudioCopy:
    """Hands the packets of a clip's first sound track to an output as its pictures come.

    Attributes:
        lost: what of the sound could not be kept, in one line; empty if nothing.
    """

    def __init__(self, source: str, output: Any, origin: Fraction, begin: Fraction) -> None:
        """Take the sound of `source` from `begin` on, in the clip's time, whose 0 is the file's `origin` (seconds).

        To be called before anything is written to `output`. Raises av.FFmpegError, ValueError or OverflowError when
        the sound cannot be read or taken over.
        """
        self.lost = ""
        self._damaged = 0
        self._written = Fraction(0)  # the end of what is written
        self._input = open_media(source)
        try:
            stream = self._input.streams.audio[0]
            if stream.codec_context is None:
                raise ValueError("a codec that is not known")
            if (stream.rate or 0) not in RATES:
                raise ValueError(f"{stream.rate} samples per second; expected {RATES[0]} to {RATES[-1]}")
            self._output = output
            self._zero = origin + begin
            self._begin = begin
            codec = stream.codec_context.codec.canonical_name
            self._spare = _first_ac3(source) if codec == "ac3" else None
            self._copied = (
                codec in COPIED
                and (codec != "ac3" or self._spare is not None)
                and _is_taken(lambda movie: movie.add_stream_from_template(stream))
            )
            if self._copied:
                self._stream = output.add_stream_from_template(stream)
            else:
                rate, layout = _encoded_as(stream)
                self._stream = output.add_stream("aac", rate=rate, layout=layout)
                self._resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
            if begin > 0:
                self._input.seek(int(self._zero * av.time_base))
        except BaseException:
            self._input.close()
            raise
        self._packets = self._shifted(stream)
        self._waiting: tuple[Fraction, Any] | None = None

    def _shifted(self, stream: Any) -> Iterator[tuple[Fraction, Any]]:
        """Packets or decoded frames with their times in the output, from 0 on."""
        packets = packets_of(self._input, stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                return  # a damaged clip: the pictures tell
            if packet is None:
                return
            try:
                if not self._copied:
                    items = packet.decode()
                else:  # the last packet is empty, and ends a decoder
                    items = [packet] if packet.size and not packet.is_corrupt else []
                    if items and self._spare is not None and not _is_ac3(bytes(packet)):
                        raise ValueError("no AC-3")
            except (av.FFmpegError, ValueError):
                self._damaged += 1
                continue
            for item in items:
                if item.pts is None:  # as in .avi, where the packets follow each other
                    item.pts = item.dts
                if item.pts is None or not item.time_base:
                    continue
                shift = round(self._zero / item.time_base)
                if item.pts < shift:
                    continue
                item.pts -= shift
                yield item.pts * item.time_base, item

    def until(self, time: Fraction) -> None:
        """Write the sound before `time`, in the clip's seconds. Raises OSError where the disk takes no more."""
        while not self.lost:
            self._waiting = self._waiting or next(self._packets, None)
            if self._waiting is None or self._waiting[0] >= time - self._begin:
                return
            moment, item = self._waiting
            self._waiting = None
            try:
                self._write(moment, item)
            except (av.FFmpegError, ValueError, OverflowError) as error:
                if getattr(error, "errno", None) in _DISK:
                    raise
                self._damaged += 1

    def _write(self, moment: Fraction, item: Any) -> None:
        """Write a packet or decoded frame that begins at `moment`, behind what is written."""
        if moment - self._written > MOST_SECONDS:
            self.lost = f"the sound ends at {float(self._written):.1f} s, before a gap of more than {MOST_SECONDS} s"
            return
        if moment < self._written - OVERLAP:
            self._damaged += 1
            return
        unit = Fraction(item.time_base)
        if self._copied:
            if not 0 <= (item.duration or 0) * unit <= MOST_SECONDS:
                raise ValueError("a packet's length")
            # Sound is stored in the order in which it is heard. What a packet lasts is a guess in some formats.
            item.pts = item.dts = max(item.pts, -int(-self._written // unit))
            item.stream = self._stream
            self._written = (item.pts + 1) * unit  # muxing changes the packet's unit
            self._output.mux(item)
            return
        # Times that are rounded in the file neither overlap nor leave gaps.
        begin = self._written if abs(moment - self._written) <= 2 * unit else max(moment, self._written)
        self._written = begin + Fraction(item.samples, item.sample_rate)
        item.time_base = Fraction(1, item.sample_rate)
        item.pts = round(begin * item.sample_rate)
        for block in self._resampler.resample(item):
            self._output.mux(self._stream.encode(block))

    def _packet_of(self, data: bytes) -> Any:
        packet = av.Packet(data)
        packet.pts = packet.dts = 0
        packet.time_base, packet.stream = self._stream.time_base or Fraction(1, 48_000), self._stream
        return packet

    def close(self) -> None:
        """Write what the encoder still holds; then `lost` is complete."""
        try:
            if self._spare is not None and self._copied and not self._written:
                self._output.mux(self._packet_of(self._spare))
            if not self._copied:
                for block in self._resampler.resample(None):
                    self._output.mux(self._stream.encode(block))
                self._output.mux(self._stream.encode(None))
        except (av.FFmpegError, ValueError) as error:
            if getattr(error, "errno", None) in _DISK:
                raise
            self._damaged += 1
        finally:
            self._input.close()
            if self._damaged and not self.lost:
                plural = "s are" if self._damaged > 1 else " is"
                self.lost = f"{self._damaged} packet{plural} left out of the sound: damaged, or out of order"


def _is_ac3(data: bytes) -> bool:
    """Whether a packet begins as AC-3 does (ATSC A/52, 5.3): the .mp4 fails of another one, with its pictures."""
    return len(data) > 6 and data[:2] == b"\x0b\x77" and data[4] >> 6 < 3 and data[4] & 63 < 38 and data[5] >> 3 <= 10


def _first_ac3(source: str) -> bytes | None:
    """The first packet of AC-3 in the first sound track; None where soon no valid one comes.

    The head of the .mp4 describes the sound by a packet, so that there must be one.
    """
    with open_media(source) as ahead:
        packets = itertools.islice(packets_of(ahead, ahead.streams.audio[0]), 100)
        return next((data for data in map(bytes, packets) if _is_ac3(data)), None)


def _encoded_as(stream: Any) -> tuple[int, str]:
    """Samples per second and layout as which the encoder takes a stream's sound: its own, or the usual ones.

    Raises ValueError when it takes none.
    """
    # A file may give a number of channels and not say which they are: "2 channels".
    named = {1: "mono", 2: "stereo"}.get(stream.codec_context.channels, stream.layout.name)
    for rate, layout in itertools.product((stream.rate, USUAL_RATE), (named, "stereo")):
        if _is_taken(methodcaller("add_stream", "aac", rate=rate, layout=layout)):
            return rate, layout
    raise ValueError("sound that cannot be encoded")


def _is_taken(add: Callable[[Any], object]) -> bool:
    """Whether an .mp4 can begin with the sound that `add` adds to it. If not, its pictures would be lost, too."""
    try:
        with av.open(io.BytesIO(), "w", format="mp4") as movie:
            add(movie)
            movie.start_encoding()
    except (av.FFmpegError, ValueError, OverflowError):
        return False
    return True

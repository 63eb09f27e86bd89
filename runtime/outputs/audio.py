"""The sound of a clip, carried over into its overlay: copied where the format allows, encoded anew where not."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av

# What players expect in an .mp4; anything else becomes AAC.
COPIED = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}


class Silence:
    """A clip without sound."""

    def until(self, time: Fraction) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class AudioCopy:
    """Hands the packets of a clip's first sound track to an output as its pictures come."""

    def __init__(self, source: str, output: Any, origin: Fraction, begin: Fraction) -> None:
        """Take the sound of `source` from `begin` on, in the clip's time, whose 0 is the file's `origin` (seconds).

        To be called before anything is written to `output`. Raises av.FFmpegError or ValueError when the sound cannot
        be read or taken over.
        """
        self._input = av.open(source, metadata_errors="ignore")
        try:
            stream = self._input.streams.audio[0]
            if stream.codec_context is None:
                raise ValueError("a codec that is not known")
            self._output = output
            self._zero = origin + begin
            self._begin = begin
            self._copied = stream.codec_context.name in COPIED
            if self._copied:
                self._stream = output.add_stream_from_template(stream)
            else:
                # A file may give a number of channels and not say which they are: "2 channels".
                named = {1: "mono", 2: "stereo"}.get(stream.codec_context.channels, stream.layout.name)
                self._stream = output.add_stream("aac", rate=stream.rate, layout=named)
                self._resampler = av.AudioResampler(format="fltp", layout=named, rate=stream.rate)
            if begin > 0:
                self._input.seek(int(self._zero * av.time_base))
        except BaseException:
            self._input.close()
            raise
        self._packets = self._shifted(stream)
        self._waiting: tuple[Fraction, Any] | None = None

    def _shifted(self, stream: Any) -> Iterator[tuple[Fraction, Any]]:
        """Packets or decoded frames with their times in the output, from 0 on."""
        try:
            for packet in self._input.demux(stream):
                if packet.dts is None and self._copied:
                    continue
                for item in [packet] if self._copied else packet.decode():
                    shift = round(self._zero / item.time_base)
                    if item.pts is None or item.pts < shift:
                        continue
                    item.pts -= shift
                    if self._copied:
                        item.dts -= shift
                    yield item.pts * item.time_base, item
        except av.FFmpegError:
            return  # a damaged clip: the pictures tell

    def until(self, time: Fraction) -> None:
        """Write the sound before `time`, in the clip's seconds."""
        while True:
            self._waiting = self._waiting or next(self._packets, None)
            if self._waiting is None or self._waiting[0] >= time - self._begin:
                return
            item = self._waiting[1]
            self._waiting = None
            if self._copied:
                item.stream = self._stream
                self._output.mux(item)
            else:
                for block in self._resampler.resample(item):
                    self._output.mux(self._stream.encode(block))

    def close(self) -> None:
        """Write what the encoder still holds."""
        try:
            if not self._copied:
                for block in self._resampler.resample(None):
                    self._output.mux(self._stream.encode(block))
                self._output.mux(self._stream.encode(None))
        finally:
            self._input.close()

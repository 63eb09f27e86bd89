"""Drawn clips, and an engine's stand-in that segments by brightness in no time."""

import time
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from runtime.frames.resize import resize_frame
from runtime.merge.suppress import renumber
from runtime.result import Merged, Result
from runtime.segmenter import Segmenter


def draw(number, size=(48, 64)):
    """A bright square that moves over a slope: uint8 [H, W, 3] BGR."""
    rows, columns = np.indices(size)
    image = np.stack([columns + 20, rows + 20, np.full(size, 40)], axis=-1).astype(np.uint8)
    left = (3 * number) % (size[1] - 16)
    image[12:28, left : left + 16] = (60, 220, 240)
    return image


def write_clip(path, count=12, size=(48, 64), rate=Fraction(25), ticks=None, audio=None, turn=0, codec="libx264"):
    """A clip of `draw`n frames. `ticks`: times in 1/90000 s; `audio`: a codec for a tone as long as the pictures."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = 4
        stream.codec_context.time_base = Fraction(1, 90000) if ticks else 1 / rate
        if turn:
            stream.set_display_rotation(turn)
        sound = out.add_stream(audio, rate=44100, layout="mono") if audio else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(draw(number, size), format="bgr24")
            frame.pts = ticks[number] if ticks else number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if sound:
            samples = int(44100 * count / rate)
            tone = (9000 * np.sin(np.arange(samples) * 0.06)).astype(np.int16)[None]
            for start in range(0, samples, 1024):
                block = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], format="s16", layout="mono")
                block.sample_rate, block.pts = 44100, start
                out.mux(sound.encode(block))
            out.mux(sound.encode(None))
    return path


def read_clip(path):
    """Times in seconds, exact, and frames of a video file."""
    with av.open(str(path)) as container:
        frames = [
            (frame.pts * frame.time_base, frame.to_ndarray(format="bgr24")) for frame in container.decode(video=0)
        ]
    return [moment for moment, _ in frames], [image for _, image in frames]


class StandIn:
    """Has the stages of a Segmenter. `calls`: how many frames the network has seen; `seconds`: how long each takes.

    `ahead`: frames of clips that were announced to the network and have not reached it yet: those alone come, in order.
    """

    def __init__(self, seconds=0.0):
        self.calls, self.seconds, self.ahead = 0, seconds, []

    def resize(self, frame):
        return resize_frame(frame, 32, 32)

    def prefetch(self, resized):
        self.ahead.append(resized)

    def network(self, resized, **options):
        assert self.ahead.pop(0) is resized
        self.calls += 1
        time.sleep(self.seconds)
        return [resized]

    def merge(self, maps, **options):
        bright = cv2.cvtColor(maps[0], cv2.COLOR_BGR2GRAY) > 128
        return Merged(bright.astype(np.int32), None, None)

    def fit(self, merged, frame, *, proposals=False):
        labels, count = renumber(cv2.resize(merged.raw, frame.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT))
        return labels, count, None

    def clone(self):
        return self

    def __call__(self, frame, **options):
        self.calls += 1
        labels, count, _ = self.fit(self.merge([self.resize(frame)]), frame)
        return Result(labels, count, {})


@pytest.fixture
def stand_in(monkeypatch):
    """What the command line opens in place of an engine."""
    segmenter = StandIn()
    monkeypatch.setattr(Segmenter, "open", lambda *arguments, **options: segmenter)
    return segmenter

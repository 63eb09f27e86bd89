"""Drawn clips, and an engine's stand-in that segments by brightness in no time."""

import signal
import time
from contextlib import contextmanager
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from runtime.engine.base import Engine
from runtime.engine.spec import EngineSpec, Level
from runtime.segmenter import Segmenter


def draw(number, size=(48, 64)):
    """A bright square that moves over a slope: uint8 [H, W, 3] BGR."""
    rows, columns = np.indices(size)
    image = np.stack([columns + 20, rows + 20, np.full(size, 40)], axis=-1).astype(np.uint8)
    left = (3 * number) % (size[1] - 16)
    image[12:28, left : left + 16] = (60, 220, 240)
    return image


@contextmanager
def small_disk(most):
    """In the body no file can grow beyond `most` bytes, as on a full disk: not those of the test program either."""
    import resource

    kept = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, kept[1][1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept[1])
        signal.signal(signal.SIGXFSZ, kept[0])


def write_clip(
    path, count=12, size=(48, 64), rate=Fraction(25), ticks=None, audio=None, turn=0, codec="libx264", hertz=44100
):
    """A clip of `draw`n frames. `ticks`: times in 1/90000 s; `audio`: a codec for a tone as long as the pictures.

    `hertz`: its samples a second.
    """
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = 4
        stream.codec_context.time_base = Fraction(1, 90000) if ticks else 1 / rate
        if turn:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV cannot write a rotation")
            stream.set_display_rotation(turn)
        sound = out.add_stream(audio, rate=hertz, layout="mono") if audio else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(draw(number, size), format="bgr24")
            frame.pts = ticks[number] if ticks else number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if sound:
            samples = int(hertz * count / rate)
            tone = (9000 * np.sin(np.arange(samples) * 0.06)).astype(np.int16)[None]
            for start in range(0, samples, 1024):
                block = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], format="s16", layout="mono")
                block.sample_rate, block.pts = hertz, start
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


class StandIn(Engine):
    """Segments by brightness, as an engine with the head labels does. `seconds`: how long a frame takes.

    `calls`: how many frames the network has seen; `ahead`: batches that were announced to it and have not come yet:
    those come in order, and no others do once one was announced.
    """

    def __init__(self, seconds=0.0, batch=1):
        self.spec = EngineSpec(
            **{"source": "stand-in", "revision": None, "head": "labels", "height": 32, "width": 32, "batch": batch},
            levels=(Level(16, 16, 1),),
            **{"timestep": 300, "prompt": "", "precision": "fp32", "storage": "fp32", "latent_scaling": 1.0},
            **{"blocks": ("down", "mid", "up"), "thresholds": (1.0,)},
        )
        self.device = self.asked = "cpu"
        self.calls, self.seconds, self.ahead = 0, seconds, []

    def prefetch(self, frames):
        self.ahead.append(frames)

    def _infer(self, inputs):
        frames = inputs["frame"]
        if self.ahead:
            assert self.ahead.pop(0) is frames
        self.calls += len(frames)
        time.sleep(self.seconds * len(frames))
        bright = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) > 128 for frame in frames]
        return [np.array(bright, np.uint8), np.full(len(frames), 2, np.int32)]

    def clone(self):
        return Aside(self)


class Aside(StandIn):
    """A clone, whose frames count as its original's."""

    def __init__(self, original):
        super().__init__()
        self.original = original

    def _infer(self, inputs):
        self.original.calls += 1
        return super()._infer(inputs)


@pytest.fixture
def stand_in(monkeypatch):
    """The engine that the command line opens."""
    engine = StandIn()
    monkeypatch.setattr(Segmenter, "open", lambda *arguments, **options: Segmenter(engine))
    return engine

"""What a child does in place of its work: decoders and encoders that crash, hang or take all memory."""

import os
import signal
import time

from runtime.frames import apart, pixels
from runtime.outputs import apart as movies
from runtime.outputs.movie import VideoSink


def end(way):
    """Do what a hostile input does."""
    if way == "hang":
        time.sleep(60)
    elif way == "flood":
        bytearray(8 << 30)
    else:
        os.kill(os.getpid(), signal.Signals[way])


def serve_clip(channel, name, way="SIGSEGV", at=4, **given):
    """`runtime.frames.apart.serve_clip`, whose decoder dies at a frame of clips called bad."""
    if "bad" in name:
        send, count = channel.send, [0]

        def deadly(**message):
            count[0] += 1  # the first message is what the clip is
            if count[0] > at:
                channel.send = send
                end(way)
            send(**message)

        channel.send = deadly
    return apart.serve_clip(channel, name, **given)


def serve_opening(channel, name, **given):
    return serve_clip(channel, name, at=0, **given)


def serve_hanging(channel, name, **given):
    return serve_clip(channel, name, way="hang", **given)


def serve_flood(channel, name, **given):
    return serve_clip(channel, name, way="flood", **given)


def serve_movie(channel, name, **given):
    """`runtime.outputs.apart.serve_movie`, whose encoder dies at frame 30 of movies called bad."""
    write = VideoSink.write

    def deadly(self, number, moment, prepared):
        if number == 30 and "bad" in name:
            end("SIGABRT")
        return write(self, number, moment, prepared)

    VideoSink.write = deadly
    try:
        return movies.serve_movie(channel, name, **given)
    finally:
        VideoSink.write = write


def serve_picture(channel, name, **given):
    """`runtime.frames.pixels.serve_picture`, whose decoder dies of pictures called bad, and once in a worn child."""
    if "bad" in name:
        end("SIGSEGV")
    return pixels.serve_picture(channel, name, **given)


def serve_worn(channel, name, **given):
    """Dies in a child that has worked before, whatever it is given."""
    if getattr(channel, "worn", False):
        end("SIGSEGV")
    channel.worn = True
    return pixels.serve_picture(channel, name, **given)

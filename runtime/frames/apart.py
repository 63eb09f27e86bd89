"""Decoding in a child process: a file that crashes, hangs or floods a decoder ends there, and is one line here."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from fractions import Fraction
from threading import Event
from typing import Any

from runtime.children import pool
from runtime.children.channel import SLOTS, Channel
from runtime.errors import DiffSegError
from runtime.frames.clip import Clip, Picture
from runtime.frames.limits import most_pixels, set_most_pixels
from runtime.frames.media import FILE

TASK = "runtime.frames.apart:serve_clip"
CLIP_MEMORY = 64  # bytes a pixel that a decoder may hold: its references, and a frame of each of its threads
LEAVE = 2.0  # seconds that a child may take to end a clip that is not wanted any more


def open_here(address: str, name: str, start: Fraction, pyav: bool = True) -> Clip:
    """Open `file:PATH` or a URL in this process: through PyAV where it is installed, or through OpenCV.

    `pyav`: False: through OpenCV. Raises DiffSegError when it cannot be opened.
    """
    if pyav and has_pyav():
        from runtime.frames.container import ContainerClip

        return ContainerClip(address, name, start)
    from runtime.frames.capture import CaptureClip

    return CaptureClip(address, name)


def has_pyav() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def open_apart(address: str, name: str, start: Fraction) -> Clip | None:
    """As `open_here`, in a child process; None where no child can be used (`runtime.children.pool.borrow`)."""
    path = address.removeprefix(FILE)
    if address.startswith(FILE) and path.startswith(("/dev/", "/proc/")):  # of a process, and a child is another one
        address = FILE + os.path.realpath(path)
    given: dict[str, Any] = {"address": address, "start": str(start), "pyav": has_pyav()}
    try:
        begun = pool.begin_task(TASK, name, most_pixels(), pool.MEMORY, most=most_pixels(), **given)
    except pool.Ended as end:
        raise pool.harmful(name, "decoder", end) from None
    return None if begun is None else ApartClip(name, *begun)


class ApartClip(Clip):
    """A clip that a child process reads."""

    def __init__(self, name: str, child: pool.Child, opened: dict[str, Any]) -> None:
        self._child: pool.Child | None = child
        super().__init__(name)
        self.rate = None if opened["rate"] is None else Fraction(opened["rate"])
        self.tick, self.aspect = Fraction(opened["tick"]), Fraction(opened["aspect"])
        self.seconds, self.live, self.gaps = opened["seconds"], opened["live"], opened["gaps"]
        self.pixels = opened["pixels"]
        self.audio = None if opened["audio"] is None else (opened["audio"][0], Fraction(opened["audio"][1]))

    def read(self, stop: Event) -> Iterator[Picture]:
        """Frames in the order in which they are shown. `lost` says what could not be decoded."""
        child = self._child
        if child is None:
            return
        moment = Fraction(0)
        try:
            child.send(read=True)
            while (message := child.answer(stop)) is not None:
                if "done" in message:
                    self.lost += message["done"]
                    self._child = None
                    pool.give_back(child)
                    return
                moment, image = Fraction(message["time"]), child.channel.take(message)
                with contextlib.suppress(pool.Ended):  # what it sent before is still there to be read
                    child.send(free=message["slot"])
                yield moment, image
                if stop.is_set():
                    return
        except (pool.Ended, ValueError) as end:
            self._drop()
            self.lost.append(f"reading stopped after {float(moment):.1f} s (the decoder {end})")
        except (DiffSegError, ModuleNotFoundError):
            self._child = None
            pool.give_back(child)
            raise

    def close(self) -> None:
        """Close the file."""
        child = self._child
        if child is None:
            return
        try:
            child.send(stop=True)
            end = Event()
            while child.channel.waits(LEAVE):
                message = child.answer(end)
                if message is None or "done" in message:
                    break
            else:
                return self._drop()
        except DiffSegError:
            pass  # of frames that nobody wants
        except (pool.Ended, ModuleNotFoundError):
            return self._drop()
        self._child = None
        pool.give_back(child)

    def _drop(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def __del__(self) -> None:
        self._drop()


def serve_clip(channel: Channel, name: str, address: str, start: str, pyav: bool, most: int) -> list[str]:
    """In the child: open a clip, say what it is, and send its frames as they are wanted. Returns what was lost."""
    set_most_pixels(most)
    opened = open_here(address, name, Fraction(start), pyav)
    try:
        channel.allow(pool.MEMORY + CLIP_MEMORY * opened.pixels)
        channel.send(
            rate=None if opened.rate is None else str(opened.rate),
            tick=str(opened.tick),
            aspect=str(opened.aspect),
            seconds=opened.seconds,
            live=opened.live,
            gaps=opened.gaps,
            pixels=opened.pixels,
            audio=None if opened.audio is None else [opened.audio[0], str(opened.audio[1])],
        )
        if "read" not in channel.receive():
            return []
        free, stop = list(range(SLOTS)), Event()
        for moment, image in opened.read(stop):
            while not stop.is_set() and (not free or channel.waits()):
                message = channel.receive()
                stop.set() if "stop" in message else free.append(message["free"])
            if stop.is_set():
                break
            channel.send(time=str(moment), **channel.put(image, free.pop(0)))
        return opened.lost
    finally:
        opened.close()

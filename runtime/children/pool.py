"""Children: started when the first is needed, kept for the next task, replaced when one ends."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from runtime.children.channel import SLOTS, Channel
from runtime.errors import DiffSegError

LONGEST = 120.0  # seconds without an answer after which a child counts as hanging
START = 60.0  # seconds in which a child must have started
MEMORY = 1 << 30  # bytes that a child may allocate, and more where pictures are large
MOST_IDLE = 8  # children kept for later
MOST_HELD = 256 << 20  # bytes of shared memory that one of them may keep
IN_PROCESS = "DIFFSEG_IN_PROCESS"  # an environment variable; 1: no children, for debugging


class Ended(Exception):
    """A child ended, or was ended, in the middle of a task; the text says how, as in "crashed (SIGSEGV)"."""


class Child:
    """A process that does one task at a time. Safe to use from one thread.

    Attributes:
        key: what must not change while it lives.
        tasks: how many it has been given.
    """

    def __init__(self, key: object) -> None:
        """Start one. Raises OSError or Ended where that is impossible."""
        from multiprocessing import Pipe

        self.key, self.tasks = key, 0
        ours, theirs = Pipe()
        memories = tuple(_shared_memory() for _ in range(SLOTS))
        self.channel = Channel(ours, memories)
        arguments = [str(os.getpid()), str(theirs.fileno()), json.dumps(memories), json.dumps(_paths())]
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("main.py")), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *memories),
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the parent alone
            )
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()
        try:
            self._next(START)
        except BaseException:
            self.close()
            raise

    def begin(self, do: str, name: str, memory: int = MEMORY, **given: object) -> None:
        """Give it a task: a function "module:name", which gets the child's channel and `given`.

        `name`: what messages call the input. `memory`: bytes that it may allocate.
        """
        self.tasks += 1
        try:
            folder = str(Path.cwd())
        except OSError:
            folder = "/"
        self.send(do=do, name=name, memory=memory, folder=folder, **{"with": given})

    def send(self, **message: object) -> None:
        """Send a message. Raises Ended when the child has ended."""
        try:
            self.channel.send(**message)
        except OSError:
            raise Ended(self._how()) from None

    def answer(self, stop: threading.Event | None = None) -> dict[str, Any] | None:
        """The next message; None if `stop` is set before it comes.

        Raises Ended when the child ends or hangs, DiffSegError when the task has failed, and ModuleNotFoundError where
        a package is missing.
        """
        message = self._next(LONGEST, stop)
        if message is not None and "error" in message:
            if "package" in message:
                raise ModuleNotFoundError(str(message["error"]), name=str(message["package"]))
            raise DiffSegError(str(message["error"]))
        return message

    def _next(self, seconds: float, stop: threading.Event | None = None) -> dict[str, Any] | None:
        end = time.monotonic() + seconds
        try:
            while not self.channel.waits(0.1 if stop is not None else max(0, end - time.monotonic())):
                if stop is not None and stop.is_set():
                    return None
                if time.monotonic() >= end:
                    self._process.kill()
                    raise Ended(f"gave no answer for {seconds:.0f} s and was stopped")
            return self.channel.receive()
        except (EOFError, OSError, ValueError):
            raise Ended(self._how()) from None

    def _how(self) -> str:
        """How the process has ended."""
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return "sent what is no answer and was stopped"
        if status >= 0:
            return f"ended (status {status})"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        return f"was killed ({name}), perhaps for lack of memory" if name == "SIGKILL" else f"crashed ({name})"

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        self.channel.close()


class _Pool:
    lock = threading.Lock()
    idle: list[Child] = []  # noqa: RUF012
    broken = False


def borrow(key: object = None, *, fresh: bool = False) -> Child | None:
    """A child for one task, to be given back or closed; None where the work must be done in this process.

    That is where the system is not Linux, files may have only a limited size, which also holds for shared memory, a
    child cannot be started, or DIFFSEG_IN_PROCESS is 1. `fresh`: not one that has worked before. `key`: children with
    another one are ended.
    """
    if not is_possible():
        return None
    with _Pool.lock:
        others = [child for child in _Pool.idle if child.key != key]
        _Pool.idle = [child for child in _Pool.idle if child.key == key]
        found = _Pool.idle.pop() if _Pool.idle and not fresh else None
    for other in others:
        other.close()
    if found is not None:
        return found
    try:
        return Child(key)
    except (OSError, Ended) as error:
        _Pool.broken = True
        logging.getLogger("diffseg").warning(
            "no child process can be started (%s): files are decoded in this process, which a damaged one may crash",
            error,
        )
        return None


def give_back(child: Child) -> None:
    """Keep a child that has finished its task, and has nothing more to say."""
    with _Pool.lock:
        kept = not child.channel.waits() and len(_Pool.idle) < MOST_IDLE and child.channel.held() <= MOST_HELD
        if kept:
            _Pool.idle.append(child)
    if not kept:
        child.close()


def begin_task(do: str, name: str, key: object, memory: int, **given: object) -> tuple[Child, dict[str, Any]] | None:
    """A child that has begun a task, and its first answer; None where the work must be done in this process.

    `before`, an array among `given`, is put into the child's first slot. Where a child crashes that has worked before,
    perhaps for what it was given before, a fresh one tries again. Otherwise as `Child.begin` and `Child.answer`.
    """
    array = given.pop("before", None)
    fresh = False
    while (child := borrow(key, fresh=fresh)) is not None:
        try:
            if array is not None:
                given["array"] = child.channel.put(array)  # type: ignore[arg-type]
            child.begin(do, name, memory, **given)
            message = child.answer()
            assert message is not None
            return child, message
        except Ended as end:
            child.close()
            if child.tasks < 2 or fresh or not str(end).startswith("crashed"):
                raise
            fresh = True
        except (DiffSegError, ModuleNotFoundError):
            give_back(child)  # it said so, and waits for the next task
            raise
        except BaseException:
            child.close()
            raise
    return None


def harmful(name: str, what: str, end: Ended) -> DiffSegError:
    """The error for an input whose decoder or encoder has ended."""
    return DiffSegError(f"{name}: the {what} {end}; the input is damaged or made to harm: leave it out")


def is_possible() -> bool:
    """Whether work is given to children here."""
    if sys.platform != "linux" or not hasattr(os, "memfd_create") or _Pool.broken or not sys.executable:
        return False
    if os.environ.get(IN_PROCESS, "0") not in ("", "0") or getattr(sys, "frozen", False):
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def end_all() -> None:
    """End the children that wait for a task."""
    with _Pool.lock:
        idle, _Pool.idle = _Pool.idle, []
    for child in idle:
        with contextlib.suppress(OSError):
            child.close()


def _forget() -> None:
    """In a process that was forked: the children are the other one's."""
    _Pool.lock, _Pool.idle = threading.Lock(), []


def _paths() -> list[str]:
    """Where this process finds its modules. Of the current folder only if this package is in it."""
    root = str(Path(__file__).parents[2])
    return [*(os.path.abspath(path) for path in sys.path if path or _is_here(root)), root]  # noqa: PTH100


def _is_here(folder: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(folder).samefile(".")
    return False


def _shared_memory() -> int:
    """A descriptor of memory that cannot be made smaller: its reader would crash."""
    import fcntl

    number = os.memfd_create("diffseg", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return number


atexit.register(end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

"""Ctrl-C and SIGTERM while a program starts, when they would show a traceback of its imports. Itself imports little."""

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130  # exit status


def end_at_once(number: int, frame: "FrameType | None") -> None:
    """A handler: ends the process without an exception, which in the middle of an import is lost, or locks it."""
    # Without contextlib: a half imported one may be what the signal has interrupted.
    try:  # noqa: SIM105
        sys.stdout.flush()
    except (AttributeError, OSError, RuntimeError, ValueError):  # None where it is closed
        pass
    try:  # noqa: SIM105
        os.write(2, b"error: interrupted before the first input\n")
    except OSError:
        pass
    os._exit(INTERRUPTED)


def signals_end_at_once() -> None:
    """Let both signals call `end_at_once`. Ctrl-C stays ignored where it is, as in a background job."""
    signal.signal(signal.SIGTERM, end_at_once)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)

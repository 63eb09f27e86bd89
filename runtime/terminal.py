"""What the command lines share: errors in one line, and signals that let files finish."""

import errno
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from runtime.errors import DiffSegError

FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


@contextmanager
def one_line_errors(status: int = FAILED) -> Iterator[None]:
    """Turn a DiffSegError, or an interruption, into one line on stderr and an exit status."""
    try:
        yield
    except DiffSegError as error:
        complain(str(error))
        raise typer.Exit(status) from None
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of our output has gone, which is no fault
            raise
        complain(f"cannot read or write {error.filename or 'standard output'}: {error.strerror or error}")
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        complain("interrupted; what was finished is whole, the rest is left out")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def interruptions_held(stop: Callable[[], None] | None = None) -> Iterator[None]:
    """Let what is inside come to its end; Ctrl-C and SIGTERM that come meanwhile count afterwards.

    `stop` is called at the first one, in another thread. The third one does not wait any longer.
    """
    caught = []

    def note(number: int, frame: object) -> None:
        caught.append(number)
        if len(caught) >= 3:
            raise KeyboardInterrupt
        if stop is not None and len(caught) == 1:
            threading.Thread(target=stop, daemon=True).start()

    held = {
        number: signal.signal(number, note)
        for number in (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread()  # handlers of others cannot be set, nor are needed
    }
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        if caught:
            raise KeyboardInterrupt


def run(app: typer.Typer, name: str) -> None:
    """Run a command line. SIGTERM stops it as Ctrl-C does: temporary files are removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name=name)

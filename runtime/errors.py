"""The exceptions that carry a message for people."""

import logging
from collections.abc import Iterable


class DiffSegError(RuntimeError):
    """An error that the user can correct: the message says what was expected, what was found and what to do."""

    def __str__(self) -> str:
        """One line, also where what was found has several, as an array or the name of a file may."""
        text = super().__str__()
        return text if text.isprintable() else one_line(text)


class UsageError(DiffSegError):
    """An option that is missing or does not fit the inputs: a command line ends with status 2, "bad usage"."""


class NoMoreSpace(DiffSegError):
    """Nothing more can be written: a full disk, or one that has become read-only. It ends a run of several inputs."""


class EngineFault(DiffSegError):
    """What an engine gives is no segmentation, whatever the input: the message names the engine."""


def one_line(text: str) -> str:
    """A text as one line that a terminal can show: a file's name may hold commands to the terminal.

    Lines are joined by spaces; what cannot be printed becomes a number, as in "\\x1b".
    """
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)


def shown(found: object) -> str:
    """What an error found, in one line: an array of several rows has several."""
    return one_line(repr(found))


def as_one_line(error: Exception, name: str) -> DiffSegError:
    """An error of one input as a DiffSegError that names the input; the others go on.

    A DiffSegError is given back as it is. Any other becomes its type and the beginning of its message; its traceback
    goes to the logger "diffseg" at the level debug.
    """
    if isinstance(error, DiffSegError):
        return error
    logging.getLogger("diffseg").debug("%s", name, exc_info=error)
    if isinstance(error, MemoryError):
        return DiffSegError(f"{name}: needs more memory than is available; make it smaller, or provide more memory")
    text = one_line(str(error))[:300]
    return DiffSegError(f"{name}: {type(error).__name__}{': ' if text else ''}{text}")


def check_iterable(given: object, name: str, what: str) -> None:
    """Raise DiffSegError unless an argument, called `name`, is a list or another iterable. `what`: of what."""
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes)):
        raise DiffSegError(f"{name}: expected a list or another iterable of {what}, found {given!r}")

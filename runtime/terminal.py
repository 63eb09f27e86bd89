"""What the command lines share: errors in one line, missing packages, the version, signals that let files finish."""

import errno
import importlib.util
import inspect
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, BinaryIO, cast

import typer

from runtime.errors import DiffSegError, UsageError, one_line
from runtime.starting import INTERRUPTED, end_at_once, signals_end_at_once

FAILED, USAGE_ERROR = 1, 2
PROGRAM = "diffseg"

# Package, by the name it is imported by → the project's extras that install it.
EXTRAS: dict[str, tuple[str, ...]] = {
    "PIL": ("evaluate",),
    "av": ("video",),
    "cvat_sdk": ("cvat",),
    "diffusers": ("export",),
    "fastapi": ("serve",),
    "huggingface_hub": ("export",),
    "matplotlib": ("dev",),
    "onnx": ("export",),
    "onnx_ir": ("export",),
    "onnxruntime": ("cpu", "gpu", "export"),
    "onnxscript": ("export",),
    "openvino": ("openvino",),
    "prometheus_client": ("serve",),
    "pyarrow": ("bulk",),
    "pycocotools": ("coco", "serve", "bulk"),
    "python_multipart": ("serve",),
    "ray": ("bulk",),
    "safetensors": ("export",),
    "scipy": ("video", "evaluate", "export"),
    "skimage": ("evaluate",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("rtx",),
    "torch": ("export",),
    "transformers": ("export",),
    "uvicorn": ("serve",),
    "websockets": ("serve",),
}


def complain(message: str) -> None:
    """Print one line on stderr."""
    print(f"error: {one_line(message)}", file=sys.stderr)


@contextmanager
def one_line_errors(status: int = FAILED) -> Iterator[None]:
    """Turn a DiffSegError, an OSError or Ctrl-C into one line on stderr and an exit status; a UsageError exits 2."""
    try:
        yield
    except DiffSegError as error:
        complain(str(error))
        raise typer.Exit(USAGE_ERROR if isinstance(error, UsageError) else status) from None
    except OSError as error:
        if error.errno == errno.EPIPE:  # the program that reads our output has ended, which is not an error
            raise
        complain(f"cannot read or write {error.filename or 'standard output'}: {error.strerror or error}")
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt as error:
        counts = f"; {error}" if error.args else ""
        complain(f"interrupted; what was finished is whole, the rest is left out{counts}")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def options_named(options: Mapping[str, str]) -> Iterator[None]:
    """Let errors name the option that people typed: `options` has it for each parameter that a text may begin with.

    The ValueError or DiffSegError "min_area: expected ..." becomes the DiffSegError "--min-area: expected ...".
    """
    try:
        yield
    except (DiffSegError, ValueError) as error:
        name, colon, rest = str(error).partition(":")
        if colon and name in options:
            kind = type(error) if isinstance(error, DiffSegError) else DiffSegError
            raise kind(f"{options[name]}:{rest}") from None
        raise


def options_of(command: Callable[..., object]) -> dict[str, str]:
    """For `options_named`: each parameter of a command → its option, and `thresholds`, as Python calls it."""
    options = {name: f"--{name.replace('_', '-')}" for name in inspect.signature(command).parameters}
    return options | {"thresholds": "--threshold"}


@contextmanager
def missing_packages_named(extra: str | None = None) -> Iterator[None]:
    """Turn the error of importing a package that one of our extras installs into one line, and exit with status 2.

    `extra`: the one to name where several install the package. A missing module of any other kind is a bug, and keeps
    its traceback.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        # An installed package that lacks a module of that name is a bug of ours.
        if package not in EXTRAS or importlib.util.find_spec(package) is not None:
            raise
        extras = EXTRAS[package]
        chosen = extra if extra in extras else extras[0]
        complain(f'this needs the package {package}, which is not installed; pip install "{PROGRAM}[{chosen}]"')
        sys.exit(USAGE_ERROR)


def check_packages(*packages: str) -> None:
    """Raise ModuleNotFoundError unless all of these packages are installed; imports none of them.

    For commands that would otherwise work for long before they fail. `errors_end_the_process` turns the error into one
    line.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def check_extra(extra: str) -> None:
    """`check_packages` for all packages of an extra."""
    check_packages(*(package for package, extras in EXTRAS.items() if extra in extras))


@contextmanager
def errors_end_the_process(extra: str | None = None) -> Iterator[None]:
    """End the process, with one line on stderr, on errors as in `one_line_errors` and `missing_packages_named`.

    `extra`: as in the latter.
    """
    try:
        with missing_packages_named(extra), one_line_errors():
            yield
    except typer.Exit as end:
        sys.exit(end.exit_code)


@contextmanager
def warnings_said(say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Give what the program's logger warns of to `say`, or print it on stderr, as lines that begin with "warning: "."""

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = one_line(f"warning: {record.getMessage()}")
            print(line, file=sys.stderr) if say is None else say(line)

    handler, logger = Said(logging.WARNING), logging.getLogger(PROGRAM)
    outer = list(logger.handlers)
    logger.handlers = [handler]
    try:
        yield
    finally:
        logger.handlers = outer


@contextmanager
def interruptions_held(stop: Callable[[], None] | None = None) -> Iterator[None]:
    """Let the body finish; Ctrl-C and SIGTERM that arrive meanwhile raise KeyboardInterrupt after it.

    `stop` is called at the first one, in another thread. The third one raises KeyboardInterrupt at once.
    """
    caught = []

    def note(number: int, frame: object) -> None:
        caught.append(number)
        if len(caught) >= 3:
            raise KeyboardInterrupt
        if stop is not None and len(caught) == 1:
            threading.Thread(target=stop, daemon=True).start()

    try:
        with _handled(note):
            yield
    finally:
        if caught:
            raise KeyboardInterrupt


@contextmanager
def interruptions_raised() -> Iterator[None]:
    """In the body Ctrl-C and SIGTERM raise KeyboardInterrupt, so that temporary files are removed."""
    with _handled(signal.default_int_handler):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    here = threading.current_thread() is threading.main_thread()  # other threads cannot set handlers, nor need them
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM) if here}
    try:
        yield
    finally:
        for number, handler in before.items():  # type: ignore[assignment]
            signal.signal(number, handler)


def run(app: typer.Typer, name: str, extra: str | None = None, *, writes_late: bool = False) -> None:
    """Run a command line, and end the process.

    `name`: the program's, for its usage line. `extra`: as in `missing_packages_named`. SIGTERM stops the program as
    Ctrl-C does, so that temporary files are removed. `writes_late`: the command writes only within
    `interruptions_raised`; before that both end the process at once.
    """
    open_closed_descriptors()
    if writes_late:
        signals_end_at_once()
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if signal.getsignal(signal.SIGINT) is end_at_once:  # so far
            signal.signal(signal.SIGINT, signal.default_int_handler)
    started_as = sys.argv[0]
    with errors_end_the_process(extra):
        app(prog_name=started_as if started_as.startswith(f"{PROGRAM} ") else name)


def open_closed_descriptors() -> None:
    """Give the standard descriptors that the shell has closed a file, or the next file opened would become one.

    Standard input is then at its end, and what is said on stderr is lost. Printing on stdout fails, as it should.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            if number == 1:
                # Without a buffer: what fails is not tried again at the end.
                sys.stdout = io.TextIOWrapper(cast(BinaryIO, io.FileIO(1, "w", closefd=False)), write_through=True)
            if number == 2:
                sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def version_line() -> str:
    """The program's name and version."""
    from runtime import __version__

    return f"{PROGRAM} {__version__}"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version_line())
        raise typer.Exit


# The type of a command's parameter `version: Version = False`.
Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


def fresh_process(*arguments: str) -> list[str]:
    """The command line that runs `diffseg ARGUMENTS` in a process of its own.

    The process imports these packages, wherever it starts: `python -m` would look in the current folder first.
    """
    root = str(Path(__file__).resolve().parents[1])
    code = f"import sys; sys.path.insert(0, {root!r}); from runtime.cli import main; main()"
    return [sys.executable, "-c", code, *arguments]

"""Signals while a command starts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# An exception that is raised in the callback of a weak reference is lost, as one in the middle of an import may be.
PROGRAM = """
import os, signal, weakref
import typer
from runtime.terminal import interruptions_raised, one_line_errors, run

app = typer.Typer()

@app.command()
def command(number: int, when: str):
    print("begun")
    if when == "later":
        try:
            with one_line_errors(), interruptions_raised():
                os.kill(os.getpid(), number)
        finally:
            print("tidied up")
    one = {1}
    watched = weakref.ref(one, lambda _: os.kill(os.getpid(), number))
    del one
    print("went on")

run(app, "program", writes_late=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("when", "printed", "said"),
    [
        ("early", "begun\n", "error: interrupted before the first input\n"),
        ("later", "begun\ntidied up\n", "error: interrupted; what was finished is whole, the rest is left out\n"),
    ],
)
def test_a_signal_ends_a_command_that_is_starting(number, when, printed, said):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(number.value), when],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        # What a shell starts in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, printed, said)


@pytest.mark.parametrize("program", ["runpy.run_module('runtime.segment', run_name='__main__')", "cli.main()"])
def test_a_signal_while_the_first_packages_are_imported(program):
    begin = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(name, *rest):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from runtime import cli\n"
        "sys.argv = ['diffseg', 'segment', 'x.png']\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", begin + program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (130, "error: interrupted before the first input\n")

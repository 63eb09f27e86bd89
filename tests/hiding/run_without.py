"""Runs commands with one package hidden each. Reads the cases as JSON from stdin, and prints what they did.

A process is forked for each command, because importing NumPy, OpenCV and PyTorch anew for each would take longest.
"""

import contextlib
import json
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parents[1]))


def main():
    # Those that import none of the packages that are hidden; torch itself can still be hidden.
    import cv2  # noqa: F401
    import numpy  # noqa: F401
    import typer  # noqa: F401

    print(json.dumps([attempt(**case) for case in json.load(sys.stdin)]))


def attempt(module, arguments, hidden, folder, seconds):
    """What `python -m MODULE ARGUMENTS` does in a folder without a package: exit status, stdout and stderr."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            signal.alarm(seconds)
            become(module, arguments, hidden, folder)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(ProcessLookupError):  # processes that it started, where time was up
            os.killpg(child, signal.SIGKILL)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return {"status": status, "stdout": texts[0], "stderr": texts[1]}


def become(module, arguments, hidden, folder):
    """Be that program until the end of this process."""
    import traceback

    status = 1
    try:
        os.environ["HIDDEN"] = hidden  # for the processes that the program starts
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
        os.chdir(folder)
        runpy.run_path(str(HERE / "sitecustomize.py"))["hide"](hidden)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else end.code is not None
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()

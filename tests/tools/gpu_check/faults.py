"""Parts that go wrong in every way that a part can."""

import os
import signal
import time

from tools.gpu_check.bench import Skipped


def passes(bench):
    return {"device": bench.name}


def misses(bench, *more):
    return {"figure": 3, "missed": ["3 of 4 labels differ", *more]}


def skips(bench):
    raise Skipped("this machine has one GPU")


def lacks(bench):
    import no_such_package  # noqa: F401


def raises(bench):
    print("said before the end")
    raise MemoryError("no memory\non the card")


def exits(bench):
    raise SystemExit(3)


def interrupts(bench):
    raise KeyboardInterrupt


def unwritable(bench):
    return {"figure": object()}


def crashes(bench):
    print("said before the crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(bench):
    os.write(1, b"said before it hung\n")
    time.sleep(600)

"""What a child process runs: `python main.py PARENT CONNECTION MEMORIES PATHS`, started by `runtime.children.pool`."""

import json
import os
import signal
import sys
import threading
import time

CHECKED = 1.0  # seconds between two looks at whether the parent lives


def _end_with(parent: int) -> None:
    """End the process when its parent has ended, also while a decoder hangs."""
    while os.getppid() == parent:
        time.sleep(CHECKED)
    os._exit(1)


def main(parent: int, connection: int, memories: tuple[int, ...]) -> None:
    """Do what the parent asks for, one task after the other, until it closes the connection."""
    import contextlib
    import resource
    from importlib import import_module
    from multiprocessing.connection import Connection

    from runtime.children.channel import Channel
    from runtime.errors import as_one_line

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent decides when to stop
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    channel = Channel(Connection(connection), memories)
    channel.send(ready=True)
    while True:
        task = channel.receive()
        if "do" not in task:  # meant for a task that has ended meanwhile
            continue
        try:
            with contextlib.suppress(OSError):
                os.chdir(task["folder"])
            channel.allow(task["memory"])
            module, _, function = task["do"].partition(":")
            answer = getattr(import_module(module), function)(channel, task["name"], **task["with"])
            channel.send(done=answer)
        except ModuleNotFoundError as error:
            channel.send(error=str(error), package=error.name)
        except Exception as error:
            channel.send(error=str(as_one_line(error, task["name"])))


if __name__ == "__main__":
    # Not the folder of this file, nor the folder it is started in, but where the parent finds its modules.
    sys.path[:] = json.loads(sys.argv[4])
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), tuple(json.loads(sys.argv[3])))
    except (EOFError, OSError):
        os._exit(0)

"""A builder's progress on a terminal's stderr, and Ctrl-C while it builds."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class BuildMonitor:
    """Shows the phases of a build and cancels it when the user interrupts; `listener` is TensorRT's progress monitor.

    An exception must not cross TensorRT's own stack frames: a signal is noted, and raised after TensorRT has returned.
    """

    def __init__(self, trt: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.interrupted = False
        self._handlers: dict[int, Any] = {}
        self.listener = _make_listener(trt, self)

    def __enter__(self) -> "BuildMonitor":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._interrupt)
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.interrupted:
            raise KeyboardInterrupt

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.interrupted = True


def _make_listener(trt: Any, monitor: BuildMonitor) -> Any:
    class Listener(trt.IProgressMonitor):
        """TensorRT calls it from its own threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tasks: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            indent = "  " if parent_phase else ""
            self.tasks[phase_name] = monitor.progress.add_task(f"{indent}{phase_name}", total=num_steps)

        def phase_finish(self, phase_name: str) -> None:
            task = self.tasks.pop(phase_name, None)
            if task is not None:
                monitor.progress.remove_task(task)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.tasks:
                monitor.progress.update(self.tasks[phase_name], completed=step + 1)
            return not monitor.interrupted

    return Listener()

"""What a job tells while it runs, and at its end."""

from __future__ import annotations

import sys
import time
from typing import Any

from runtime.bulk.manifest import Finished, Job
from runtime.errors import one_line

EVERY = 10.0  # seconds between lines where nobody watches a terminal
MOST_TOLD = 20  # errors that are told one by one


class Progress:
    """Rows, errors, rate and time left, on stderr: a bar in a terminal, else a line from time to time."""

    def __init__(self, job: Job, before: dict[int, Finished], word: str) -> None:
        """`before`: what earlier runs have finished. `word`: what the rows are, such as "images"."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._job, self._word = job, word
        self._before = before
        self.rows = self.errors = self.segments = self.shards = 0
        self._old = Finished(*(sum(values) for values in zip(*before.values(), strict=True))) if before else None
        self._begun = self._last = time.monotonic()
        self._told = 0
        self._console = Console(stderr=True)
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=job.shards, completed=len(before), text="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begun

    @property
    def all_errors(self) -> int:
        """Of this run and the ones before it."""
        return self.errors + (self._old.errors if self._old else 0)

    def add(self, report: dict[str, Any]) -> None:
        """Count a finished shard, and tell."""
        self.rows += report["rows"]
        self.errors += report["errors"]
        self.segments += report["segments"]
        self.shards += 1
        for line in report["told"]:
            self._told += 1
            if self._told <= MOST_TOLD:
                self.say(f"error: {line}")
            elif self._told == MOST_TOLD + 1:
                self.say("further errors are in the rows' column error")
        text = self.text()
        self._bar.update(self._task, completed=len(self._before) + self.shards, text=text)
        if self._bar.disable and time.monotonic() - self._last > EVERY:
            self._last = time.monotonic()
            self.say(text)

    def text(self) -> str:
        """One line."""
        done = self.rows + (self._old.rows if self._old else 0)
        left = self._job.shards - len(self._before) - self.shards
        seconds = self.seconds
        rate = self.rows / seconds if seconds else 0.0
        total = f" of {self._job.images}" if self._job.images is not None else ""
        remaining = _duration(seconds / self.shards * left) if self.shards else "unknown"
        return (
            f"{done}{total} {self._word}, shard {len(self._before) + self.shards} of {self._job.shards}, {rate:.1f}/s, "
            f"{self.all_errors} errors, {remaining} left"
        )

    def say(self, line: str) -> None:
        """A line for people."""
        line = one_line(line)
        if self._bar.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)

    def summary(self) -> dict[str, Any]:
        """Figures of this run, and of all."""
        old = self._old or Finished(0, 0, 0)
        seconds = self.seconds
        return {
            self._word: old.rows + self.rows,
            "errors": old.errors + self.errors,
            "segments": old.segments + self.segments,
            "shards": {"all": self._job.shards, "before": len(self._before), "now": self.shards},
            "now": {
                self._word: self.rows,
                "errors": self.errors,
                "seconds": round(seconds, 1),
                "per_second": round(self.rows / seconds, 2) if seconds else 0.0,
            },
        }


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"

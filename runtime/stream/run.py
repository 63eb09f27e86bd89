"""A call of the command line: every source through the stages, into files, lines and a progress bar."""

from __future__ import annotations

import itertools
import json
import os
import sys
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError, EngineFault, NoMoreSpace, as_one_line, one_line
from runtime.frames.registry import SOURCES
from runtime.outputs.journal import INDEX
from runtime.outputs.registry import listings
from runtime.outputs.target import Target
from runtime.stream.clip import run_clip
from runtime.stream.contents import content_of
from runtime.stream.frame import Job, json_line
from runtime.stream.photographs import run_photographs
from runtime.stream.resume import Ledger
from runtime.terminal import interruptions_held, warnings_said

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console
    from rich.progress import Progress

    from runtime.frames.source import Source
    from runtime.outputs.listing import Listing
    from runtime.outputs.sinks import Sink
    from runtime.stages import Stages
    from runtime.stream.options import ClipOptions


class Run:
    """Segments sources in their order: photographs that follow each other as one stream, each clip as one."""

    def __init__(
        self,
        stages: Stages,
        output: Path,
        kinds: list[str],
        options: ClipOptions,
        *,
        levels: tuple[float, ...] | None = None,
        as_json: bool = False,
        resume: bool = False,
        tiled: Stages | None = None,
    ) -> None:
        """`kinds` of output into the folder `output`; `options` of clips; `levels`: thresholds of a hierarchy.

        `resume`: inputs that are done are skipped. `tiled`: what is done to photographs, in place of `stages`.
        Raises DiffSegError where the folder's index is someone else's.
        """
        from rich.console import Console

        self._stages, self._output, self._kinds, self._options = stages, output, kinds, options
        self._levels, self._as_json = levels, as_json
        self._console: Console = Console(stderr=True)
        self._quiet = not self._console.is_terminal
        self._inputs: set[Path] = set()
        self._tiled, self._photographer = tiled is not None, tiled or stages
        for listing in listings(kinds):
            listing.begin(output)
        self._ledger = Ledger(output, (self._photographer, stages), kinds, options, levels, resume=resume)
        self._done = self._failed = self._skipped = self._missing = 0
        self._engine_named = False

    def __call__(self, sources: Sequence[Source], missing: int = 0) -> int:
        """Returns how many sources failed. Each is named on stderr; the others are finished.

        `missing`: inputs that were not found, which have failed already.
        """
        self._failed, self._missing = missing, missing
        self._inputs = {Path(os.path.realpath(source.path)) for source in sources if not source.address}
        single = len(sources) == 1
        self._quiet |= single and _is_photograph(sources[0])
        self._say_what_does_nothing(sources)
        self._ledger.active |= bool(self._kinds) and not single  # a run that may be interrupted, and be resumed
        if self._ledger.is_new and self._output.is_dir() and any(self._output.iterdir()):
            self._say(f"{self._output}: no {INDEX}, which runs of several inputs write: all is segmented")
        self._refuse_levels_that_clash(sources)
        try:
            self._all(sources, single)
        except KeyboardInterrupt as interruption:
            if self._ledger.resume or not single:
                interruption.args = (self._summary(sources),)
            raise
        except DiffSegError as error:  # which ends the run
            if not (self._done or self._failed or self._skipped):
                raise
            self._say(f"error: {error}")
            self._failed = self._failed or 1
        if sources and (self._ledger.resume or not (self._as_json or single)):
            print(self._summary(sources), file=sys.stderr)
        return self._failed

    def _all(self, sources: Sequence[Source], single: bool) -> None:
        with warnings_said(self._say), closing(self._ledger), self._listings(), self._progress() as progress:
            whole = None if single else progress.add_task("Segmenting", total=len(sources), detail="")
            for photographs, group in itertools.groupby(sources, _is_photograph):
                if photographs:
                    self._photographs(list(group), progress, whole)
                    continue
                for source in group:
                    self._clip(source, progress, single)
                    if whole is not None:
                        progress.advance(whole)

    def _summary(self, sources: Sequence[Source]) -> str:
        """The last line; with --resume also for programs."""
        resumed = self._ledger.resume
        for reason, count in sorted(self._ledger.again.items()):
            self._say(f"{count} {'input was' if count == 1 else 'inputs were'} done before, but {reason}: done again")
        if resumed:
            self._report({"segmented": self._done, "skipped": self._skipped, "failed": self._failed})
        what = "images" if all(map(_is_photograph, sources)) else "inputs"
        skipped = f", {self._skipped} skipped" if resumed else ""
        return f"{self._done} of {len(sources) + self._missing} {what} segmented into {self._output}{skipped}"

    def _refuse_levels_that_clash(self, sources: Sequence[Source]) -> None:
        """Raise DiffSegError where a level of one photograph would be written over the outputs of another input."""
        targets = {source.target for source in sources}
        for source, level in itertools.product(sources, range(len(self._levels or ()))):
            other = source.target.with_name(f"{source.target.name}_level{level}")
            if other in targets:
                raise DiffSegError(
                    f"{source.name}: expected names that its levels do not have, found another input {other}; rename it"
                )

    @contextmanager
    def _listings(self) -> Iterator[None]:
        """Files that list the photographs of the whole run are assembled at its end, whatever ends it."""
        kept = listings(self._kinds)
        try:
            yield
        except BaseException:
            with interruptions_held(), suppress(DiffSegError):
                self._finish(kept)
            raise
        with interruptions_held():
            self._finish(kept)

    def _finish(self, kept: list[Listing]) -> None:
        for listing in kept:
            listing.finish(self._output)

    def _photographs(self, sources: list[Source], progress: Progress, whole: Any) -> None:
        def finished(job: Job) -> None:
            if job.error is not None:
                self._fail(job.error, self._named(job))
            else:
                self._done += 1
                self._report(json_line(job))
                if whole is None and not self._as_json:
                    self._say(_summary(job))
            if whole is not None:
                progress.advance(whole)

        def skipped(source: Source) -> None:
            self._skipped += 1
            if whole is not None:
                progress.advance(whole)

        run_photographs(
            self._photographer,
            sources,
            self._output,
            self._kinds,
            finished=finished,
            levels=self._levels,
            settings=self._photographer.settings(),
            check=self._refuse_inputs,
            ledger=self._ledger if self._ledger.active else None,
            skipped=skipped,
        )

    def _fail(self, error: DiffSegError, line: str) -> None:
        """Say that an input failed. Where no other could be written either, the run ends."""
        self._failed += 1
        if isinstance(error, NoMoreSpace):
            raise error
        self._say(f"error: {line}")

    def _clip(self, source: Source, progress: Progress, single: bool) -> None:
        stages = self._stages.tracked(self._options.warm_start) if self._options.temporal else self._stages
        target = Target.of(source, self._output, stages.settings())
        try:
            active = self._ledger.active
            entry = self._ledger.entry(target, content_of(source), clip=True) if active else None
            if entry is not None and self._ledger.is_done(entry):
                self._skipped += 1
                return
            if entry is not None:
                self._ledger.begin(entry)
            outcome = run_clip(
                self._stages,
                source,
                target,
                self._kinds,
                self._options,
                progress=progress,
                report=self._report,
                say=self._say,
                check=lambda sink: self._refuse_inputs(source, sink),
            )
            if entry is not None and outcome.whole:
                self._ledger.finish(entry, outcome.sinks.items())
        except (ModuleNotFoundError, BrokenPipeError):  # not of this clip: a package, or the reader of our lines
            raise
        except Exception as error:
            known = as_one_line(error, source.name)
            self._fail(known, str(known))
            return
        for problem in outcome.lost:
            self._say(f"warning: {source.name}: {problem}; {outcome.frames} frames were segmented")
        if not self._as_json:
            self._say(str(outcome) if single else f"{source.name}: {outcome}")
        self._failed += bool(outcome.lost)
        self._done += not outcome.lost

    def _refuse_inputs(self, source: Source, sink: Sink) -> None:
        """Raise DiffSegError where an input would be written over."""
        # An input exists; the look-up of what does not would cost more than its check.
        if os.path.lexists(sink.path) and Path(os.path.realpath(sink.path)) in self._inputs:
            raise DiffSegError(f"{source.name}: would overwrite the input {sink.path}; choose another --output")

    def _named(self, job: Job) -> str:
        """The error of a photograph, which names it. What is wrong with the engine is said once."""
        assert job.source is not None
        text, name = str(job.error), job.source.name
        if isinstance(job.error, EngineFault):
            if self._engine_named:
                return f"{name}: the engine failed as above"
            self._engine_named = True
        return text if name in text or one_line(name) in text else f"{name}: {text}"

    def _say_what_does_nothing(self, sources: Iterable[Source]) -> None:
        kinds = {_is_photograph(source) for source in sources}
        given = self._options.given()
        if kinds == {True} and given:
            self._say(f"warning: {', '.join(given)}: for clips; has no effect on photographs")
        if kinds == {False} and self._levels is not None:
            self._say("warning: --hierarchy: for photographs; has no effect on clips")
        if kinds == {False} and self._tiled:
            self._say("warning: --tiles: for photographs; has no effect on clips")

    def _say(self, line: str) -> None:
        """One line for people, above the progress bar."""
        line = one_line(line)
        if self._quiet:
            print(line, file=sys.stderr)
        else:
            self._console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)

    def _report(self, line: dict[str, object]) -> None:
        """One line for programs. ASCII, so that any name can be printed whatever the terminal's encoding."""
        if self._as_json:
            print(json.dumps(line), flush=True)

    def _progress(self) -> Progress:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
            disable=self._quiet,
            transient=True,
            # stdout is for JSON alone: rich would otherwise send what is printed there to the bar's own stream.
            redirect_stdout=False,
            redirect_stderr=False,
        )


def _is_photograph(source: Source) -> bool:
    return SOURCES[source.kind].still


def _summary(job: Job) -> str:
    assert job.result is not None
    counts = [(job.result.count, "segment")]
    if job.hierarchy is not None:
        counts.append((job.hierarchy.levels, "level"))
    counted = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
    return f"{counted}: {', '.join(map(str, job.written)) or 'nothing written'}"

"""What the command lines of all tools share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
import typer.core

from runtime.terminal import one_line_errors


class _Group(typer.core.TyperGroup):
    """A group of commands whose errors are one line each."""

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors():
            return super().invoke(ctx)


class _Single(typer.core.TyperCommand):
    """A command whose errors are one line each."""

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors():
            return super().invoke(ctx)


def command_group(about: str) -> typer.Typer:
    """An application of several commands. `about`: the first paragraph of its help.

    A DiffSegError of a command becomes one line on stderr and exit status 1, a UsageError status 2.
    """
    app = typer.Typer(cls=_Group, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    # The callback keeps the command's name on the command line, also where there is one command only.
    app.callback(help=about)(lambda: None)
    return app


def single_command(function: Callable[..., None]) -> typer.Typer:
    """An application that is one command; errors as in `command_group`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=_Single)(function)
    return app

"""What the command lines of all tools share."""

from __future__ import annotations

from typing import Any

import typer
import typer.core

from runtime.terminal import one_line_errors


class _OneLineErrors(typer.core.TyperGroup):
    """A group of commands whose errors are one line each."""

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors():
            return super().invoke(ctx)


def command_group(about: str) -> typer.Typer:
    """An application of several commands. `about`: the first paragraph of its help.

    A DiffSegError of a command becomes one line on stderr and exit status 1.
    """
    app = typer.Typer(cls=_OneLineErrors, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    # The callback keeps the command's name on the command line, also where there is one command only.
    app.callback(help=about)(lambda: None)
    return app

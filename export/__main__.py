"""Command line: `python -m export MODEL --output engines/NAME`, and the other commands by their names."""

from __future__ import annotations

from typing import Any

import typer
import typer.core

from export.commands.check import check
from export.commands.describe import list_model
from export.commands.model import export_model
from export.commands.plan import plan
from export.commands.quantize import quantize
from runtime.terminal import run


class _ExportUnlessNamed(typer.core.TyperGroup):
    """`python -m export MODEL ...` without the name of a command exports."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["model", *args])


app = typer.Typer(cls=_ExportUnlessNamed, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command("model", epilog="Other commands, each with --help: list, check, plan, quantize.")(export_model)
app.command("list")(list_model)
app.command("check")(check)
app.command("plan")(plan)
app.command("quantize")(quantize)

if __name__ == "__main__":
    run(app, "python -m export", "export")

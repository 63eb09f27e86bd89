"""The comparison with PyTorch, for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.check.maps import Check


def report(checks: Sequence[Check]) -> None:
    """Print the maps' errors as a table and every other check as a line, on stderr."""
    from rich.console import Console
    from rich.table import Table

    from export.check.maps import OutputCheck

    table = Table(title="engine against PyTorch", box=None, pad_edge=False)
    for column in ("output", "worst", "mean", "row KL", "bound", "row sum", ""):
        table.add_column(column, justify="left" if column == "output" else "right", no_wrap=True)
    for check in checks:
        if isinstance(check, OutputCheck):
            figures = (check.worst, check.mean, check.divergence, check.bound, check.row_sum)
            table.add_row(check.output, *(f"{figure:.1e}" for figure in figures), check.verdict)
    if table.rows:
        Console(stderr=True).print(table)
    for check in checks:
        if not isinstance(check, OutputCheck):
            print(f"{check}: {check.verdict}", file=sys.stderr)

"""`python -m tools.gpu_check`: everything that needs a GPU, in one command."""

import typer

from runtime.terminal import run
from tools.gpu_check.check import check

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(check)

if __name__ == "__main__":
    run(app, "python -m tools.gpu_check")

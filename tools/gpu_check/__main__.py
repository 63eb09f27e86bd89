"""`python -m tools.gpu_check`: everything that needs a GPU, in one command."""

from runtime.terminal import run
from tools.command import single_command
from tools.gpu_check.check import check

app = single_command(check)

if __name__ == "__main__":
    run(app, "python -m tools.gpu_check")

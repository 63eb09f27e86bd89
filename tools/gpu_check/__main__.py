"""`python -m tools.gpu_check`: everything that needs a GPU, in one command."""

from runtime.terminal import run, single_command
from tools.gpu_check.check import check

if __name__ == "__main__":
    run(single_command(check), "python -m tools.gpu_check")

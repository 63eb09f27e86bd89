"""`python -m tools.benchmark`: measures the product against its budgets."""

from runtime.terminal import run
from tools.benchmark.core import app

if __name__ == "__main__":
    run(app, "python -m tools.benchmark")

"""`python -m tools.gpu_check.plain`: the same command where typer and rich are not installed.

A plain container of PyTorch has NumPy, torch and nvcc: enough for the parts of the merge core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import DiffSegError, UsageError
from tools.gpu_check.bench import Bench
from tools.gpu_check.check import run_check


def main(words: Sequence[str] | None = None) -> int:
    """Run the check with these words of a command line. Returns the exit status of `python -m tools.gpu_check`."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check.plain", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu_report.json"), help="The report.")
    parser.add_argument("--only", metavar="PART", action="append", default=[], help="This part; may be given again.")
    parser.add_argument("--minutes", type=float, help="Run what fits into this time, in order of worth.")
    parser.add_argument("--repeat", type=int, default=50, help="Timed runs.")
    parser.add_argument("--device", type=int, default=0, help="Which GPU.")
    parser.add_argument("--dry", action="store_true", help="Walk through it without a GPU, the CPU in its place.")
    given = parser.parse_args(words)
    bench = Bench(device=given.device, repeat=given.repeat, dry=given.dry)
    try:
        passed = run_check(given.output, bench, given.only, given.minutes, lambda text: print(text, file=sys.stderr))
    except DiffSegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

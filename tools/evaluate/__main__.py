"""`python -m tools.evaluate`: compares segmentations with ground truth, and engines with each other."""

from runtime.terminal import run
from tools.command import command_group
from tools.evaluate.agreement import agreement
from tools.evaluate.evaluate import evaluate
from tools.evaluate.layouts import ALIASES, KNOWN
from tools.evaluate.mirror import mirror
from tools.evaluate.scenes import scenes
from tools.evaluate.tiles import tiles
from tools.evaluate.tune import tune

app = command_group("Compare segmentations with ground truth, and engines with each other.")
for name, known in KNOWN.items():
    app.command(name, help=known.help)(evaluate)
for alias in ALIASES:
    app.command(alias, hidden=True)(evaluate)
app.command()(scenes)
app.command()(tiles)
app.command()(agreement)
app.command()(mirror)
app.command()(tune)

if __name__ == "__main__":
    run(app, "python -m tools.evaluate", "evaluate")

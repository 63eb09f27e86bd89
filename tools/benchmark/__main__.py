"""`python -m tools.benchmark`: measures the product against its budgets."""

from runtime.terminal import run
from tools.benchmark.bulk import bulk
from tools.benchmark.core import core
from tools.benchmark.export import export
from tools.benchmark.frame import frame
from tools.benchmark.pipeline import pipeline
from tools.benchmark.plan import plan
from tools.benchmark.roofline import roofline
from tools.benchmark.scaling import scaling
from tools.benchmark.serve import serve
from tools.benchmark.video import video
from tools.command import command_group

app = command_group("Measure DiffSeg against its budgets.")
for command in (core, frame, scaling, pipeline, video, export, plan, roofline, serve, bulk):
    app.command()(command)

if __name__ == "__main__":
    run(app, "python -m tools.benchmark")

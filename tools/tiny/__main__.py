"""`python -m tools.tiny`: trains the embedded engine's model."""

from runtime.terminal import run
from tools.command import command_group
from tools.tiny.engine import engine
from tools.tiny.mean import mean
from tools.tiny.merge import merge
from tools.tiny.train import train
from tools.tiny.tune import tune

app = command_group("Train the embedded engine: engine does all of it; train, tune, mean and merge are its stages.")
app.command()(engine)
app.command()(train)
app.command()(tune)
app.command()(mean)
app.command()(merge)

if __name__ == "__main__":
    run(app, "python -m tools.tiny")

"""`python -m tools.pictures`: draws the pictures of the top README again."""

from runtime.terminal import run
from tools.command import command_group
from tools.pictures.photographs import photographs
from tools.pictures.video import video

app = command_group("Draw the pictures of the top README again.")
app.command()(photographs)
app.command()(video)

if __name__ == "__main__":
    run(app, "python -m tools.pictures", "evaluate")

from runtime.terminal import run
from tools.evaluate.main import app

if __name__ == "__main__":
    run(app, "python -m tools.evaluate")

from tools.benchmark.core import app

if __name__ == "__main__":
    app()

import typer

from tools.gpu_check.check import check

if __name__ == "__main__":
    typer.run(check)

"""The command `diffseg NAME ...`: a table of programs, each of which runs as `python -m MODULE` would run it."""

import sys
from typing import NamedTuple

from runtime.starting import signals_end_at_once


class Command(NamedTuple):
    """A program: the module that is it, the extra that installs what it needs, and what it does."""

    module: str
    extra: str
    about: str


COMMANDS = {
    "segment": Command("runtime.segment", "cpu", "Segment images and clips."),
    "export": Command("export.__main__", "export", "Export a Stable Diffusion model to an engine file."),
    "serve": Command("runtime.serve.__main__", "serve", "Answer HTTP requests with segments, and show a page."),
    "bulk": Command("runtime.bulk.__main__", "bulk", "Segment a data set on the machines of a Ray cluster."),
    "triton": Command("runtime.hosts.triton.__main__", "cpu", "Write an engine as a model for Triton's server."),
    "engine": Command("runtime.hosts.engine.__main__", "cpu", "Make engines for C++, DeepStream and other programs."),
    "page": Command("runtime.page.__main__", "cpu", "Write a static site that segments in the browser alone."),
    "label-studio": Command("runtime.hosts.label_studio", "cpu", "Answer Label Studio's requests for predictions."),
}


def main() -> None:
    """Run the program that the first argument names, with the arguments that follow it. Ends the process."""
    signals_end_at_once()  # before anything else is imported
    import runpy

    from runtime.terminal import PROGRAM, USAGE_ERROR, complain, missing_packages_named, version_line

    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(usage())
        return
    if name == "--version":
        print(version_line())
        return
    if name not in COMMANDS:
        complain(f"expected a command ({', '.join(COMMANDS)}), found {name!r}; '{PROGRAM} --help' says what they do")
        sys.exit(USAGE_ERROR)
    command = COMMANDS[name]
    sys.argv = [f"{PROGRAM} {name}", *arguments]
    with missing_packages_named(command.extra):
        # The search path stays as it is: a folder `runtime` or `export` where the user works is not ours.
        runpy.run_module(command.module, run_name="__main__")


def usage() -> str:
    """What `diffseg --help` prints."""
    from runtime.terminal import PROGRAM

    width = max(map(len, COMMANDS))
    rows = (
        f'  {name:{width}}  {command.about} Needs: pip install "{PROGRAM}[{command.extra}]"'
        for name, command in COMMANDS.items()
    )
    return "\n".join(
        (
            f"Usage: {PROGRAM} COMMAND ...",
            f"       {PROGRAM} COMMAND --help",
            f"       {PROGRAM} --version",
            "",
            "Unsupervised, zero-shot segmentation from Stable Diffusion's self-attention.",
            "",
            "Commands:",
            *rows,
        )
    )


if __name__ == "__main__":
    main()

"""Command line: `python -m runtime.serve` answers HTTP requests with segments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.errors import DiffSegError
from runtime.page.shared import MOST_BYTES, MOST_PIXELS
from runtime.refine.registry import DEFAULT_PIECES
from runtime.terminal import Version, check_extra, one_line_errors, options_named, run, warnings_said

if TYPE_CHECKING:
    from runtime.serve.settings import Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    engine: Annotated[Path | None, typer.Option(help="Engine file; the embedded default if left out.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but this machine's own needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    token: Annotated[
        str,
        typer.Option(
            envvar="DIFFSEG_TOKEN",
            help="What clients must know: 'Authorization: Bearer TOKEN', in a browser the password.",
        ),
    ] = "",
    origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Another site whose pages may use the service; may be repeated. None."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(metavar="auto|cpu|cuda[:N]", help="Where to run; may be repeated: a worker for each. auto."),
    ] = None,
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="As of diffseg segment.")] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", help="Of the network on a CPU; all if left out.")] = None,
    threshold: Annotated[
        str | None, typer.Option(metavar="T", help="Where a request names none: a number, one per iteration, or auto.")
    ] = None,
    refine: Annotated[str, typer.Option(metavar="WORDS", help="Where a request names none.")] = "none",
    min_area: Annotated[float, typer.Option(metavar="A", help="Where a request names none.")] = 0,
    pieces: Annotated[
        str, typer.Option(metavar="unlike|split|keep", help="Where a request names none.")
    ] = DEFAULT_PIECES,
    flip: Annotated[bool, typer.Option("--flip", help="As of diffseg segment, for every request.")] = False,
    queue: Annotated[
        int, typer.Option(min=1, metavar="N", help="Frames inside at once; further ones are answered with 503.")
    ] = 64,
    seconds: Annotated[
        float, typer.Option(min=0.01, metavar="S", help="Time limit of a request, once it is there as a whole.")
    ] = 60,
    slowest: Annotated[
        float, typer.Option(min=0.01, metavar="S", help="Time for a request to arrive, and for its answer to be read.")
    ] = 30,
    max_bytes: Annotated[int, typer.Option(min=1, metavar="N", help="Larger bodies are refused.")] = MOST_BYTES,
    max_pixels: Annotated[
        int, typer.Option(metavar="N", help="Larger pictures are refused before they are decoded.")
    ] = MOST_PIXELS,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="A line of JSON for each request, on stdout.")
    ] = True,
    version: Version = False,
) -> None:
    """Answer HTTP requests with segments: pictures and clips, the Open Inference Protocol, and a page at /.

    SIGTERM and Ctrl-C stop it: it accepts no more requests, finishes those it has, and exits 0.
    """
    with warnings_said(), one_line_errors():
        check_extra("serve")
        from runtime.frames.limits import set_most_pixels
        from runtime.serve.settings import LOOPBACK, Settings

        if host not in LOOPBACK and not token:
            raise DiffSegError(
                f"--host {host}: others can reach this address, expected a --token (or DIFFSEG_TOKEN), found none"
            )
        set_most_pixels(max_pixels)
        settings = Settings(
            host=host,
            token=token,
            origins=tuple(origin or ()),
            queue=queue,
            seconds=seconds,
            slowest=slowest,
            most_bytes=max_bytes,
        )
        from runtime.options import thresholds_of
        from runtime.segmenter import Segmenter

        names = {
            "threshold": "--threshold",
            "thresholds": "--threshold",
            "refine": "--refine",
            "min_area": "--min-area",
            "pieces": "--pieces",
            "flip": "--flip",
            "threads": "--threads",
        }
        with options_named(names):
            thresholds = thresholds_of(threshold)
            opened = [
                Segmenter.open(
                    engine,
                    each,
                    backend=backend,
                    thresholds=thresholds,
                    refine=refine,
                    min_area=min_area,
                    pieces=pieces,
                    flip=flip,
                    options={"threads": threads},
                )
                for each in dict.fromkeys(device or ["auto"])
            ]
        serve(opened, settings, port, sys.stdout if access_log else None)


def serve(segmenters: Any, settings: Settings, port: int, log: Any) -> None:
    """Listen until a signal. Raises DiffSegError where the port is taken."""
    from runtime.serve.app import create_app
    from runtime.serve.listen import bind, server

    with bind(settings.host, port) as listening:
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        running = server(create_app(segmenters, settings, log=log), settings)
        print(f"listening on http://{name}:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
        running.run(sockets=[listening])


if __name__ == "__main__":
    run(app, "python -m runtime.serve", "serve")

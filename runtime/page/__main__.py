"""Command line: `diffseg page` writes a static site that segments pictures in the browser alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runtime.terminal import Version, check_packages, one_line_errors, run, warnings_said

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the site: new, empty, or an older site.")],
    engine: Annotated[
        Path | None, typer.Option(help="ONNX engine with the head attention; the embedded default if left out.")
    ] = None,
    package: Annotated[
        Path | None, typer.Option(metavar="FILE", help="onnxruntime-web as 'npm pack' gives it; fetched if left out.")
    ] = None,
    registry: Annotated[
        str, typer.Option(metavar="URL", envvar="npm_config_registry", help="The npm registry that it is fetched from.")
    ] = "https://registry.npmjs.org/",
    version: Version = False,
) -> None:
    """Write a static site that segments pictures in the browser alone, by onnxruntime-web.

    Any file server can serve it; pictures never leave the browser.
    """
    with warnings_said(), one_line_errors():
        check_packages("onnxruntime")
        from runtime.page.package import read_package
        from runtime.page.site import check_folder, megabytes, read_engine, site_files, write_site

        check_folder(output)
        files, load = site_files(read_engine(engine), read_package(registry, package))
        write_site(output, files)
        print(f"{output}: {len(files)} files, {megabytes(sum(map(len, files.values())))}")
        print(
            f"the first picture loads {megabytes(load.plain)}, {megabytes(load.compressed)} where the server compresses"
        )
        print(f"to try it: python -m http.server --bind 127.0.0.1 --directory {output}")


if __name__ == "__main__":
    run(app, "python -m runtime.page", "cpu")

"""`python -m tools.tiny merge`: the graph of the merge that goes behind the embedded engine's."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from runtime.engine.onnx_file import read_engine
from runtime.engine.registry import EMBEDDED
from runtime.files import write_atomically
from runtime.hosts.engine.labels import MERGE

PREFIX = "merge."  # of the names of its values


def merge(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE.onnx", help="Whose shape of maps it is for.")] = EMBEDDED,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it.")] = MERGE,
) -> None:
    """Trace the merge for the maps of an engine. With other weights only its description changes."""
    from export.graph.onnx_file import write_engine
    from export.graph.trace import trace_merge

    spec = read_engine(engine)
    described = replace(spec, head="labels", auto=False, source="the merge alone", storage=spec.precision)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / output.name
        write_engine(trace_merge(described, PREFIX), described, part)
        write_atomically(output, part.read_bytes())

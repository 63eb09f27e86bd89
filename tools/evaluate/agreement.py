"""`python -m tools.evaluate agreement A B PHOTOS`: how far two engines agree on photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from export.check.agreement import ENOUGH, LARGE, matched_agreement, says_something
from runtime.errors import DiffSegError


def agreement(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine to judge.")],
    reference: Annotated[
        Path, typer.Argument(metavar="REFERENCE", help="Engine to compare with, such as its fp32 twin.")
    ],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Photographs, folders or globs.")],
    backend: Annotated[str | None, typer.Option(help="Of the first engine: onnxruntime or openvino.")] = None,
    threshold: Annotated[float | None, typer.Option(help="KL threshold; default: the engines' own.")] = None,
    at_least: Annotated[float | None, typer.Option(help="Exit 1 below this mean agreement, such as 0.99.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of text.")] = False,
) -> None:
    """Mean share of pixels on which two engines agree, segments matched one to one.

    Photographs with fewer than four segments of at least 1 % (by the second engine) do not count.
    """
    from runtime.engine.registry import open_engine
    from runtime.frames.decode import read_frame
    from runtime.frames.find import find_sources
    from runtime.options import default_config, settle_options
    from runtime.segmenter import Segmenter

    # The merge alone: what follows it would hide differences of the engines, or make more of them.
    segmenter, other = (
        Segmenter(opened, settle_options(default_config(opened.spec), thresholds=threshold)[0])
        for opened in (open_engine(engine, "cpu", backend), open_engine(reference, "cpu"))
    )
    sources, failures = find_sources(inputs)
    if failures:
        raise DiffSegError(failures[0])
    shares: dict[str, float] = {}
    for source in sources:
        frame = read_frame(source.path)
        expected = other(frame).labels
        if says_something(expected):
            shares[str(source.path)] = matched_agreement(segmenter(frame).labels, expected)
    if not shares:
        raise DiffSegError(
            f"expected a photograph with {ENOUGH} segments of at least {LARGE:.0%}, found none in {len(sources)}; "
            "lower --threshold"
        )
    values = list(shares.values())
    report: dict[str, Any] = {
        "photographs": len(sources),
        "counted": len(values),
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "worst": min(shares.items(), key=lambda item: item[1]),
    }
    if as_json:
        print(json.dumps(report))
    else:
        print(
            f"{report['mean']:.2%} of pixels agree (median {report['median']:.2%}, worst {report['worst'][1]:.2%} on "
            f"{report['worst'][0]}), {report['counted']} of {report['photographs']} photographs counted"
        )
    raise typer.Exit(1 if at_least is not None and report["mean"] < at_least else 0)

"""`python -m export quantize ENGINE --images PHOTOS --output engines/NAME`: makes an int8 engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from export.commands.options import NewEngine, engine_path
from runtime.terminal import check_packages, one_line_errors


def quantize(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE.onnx", help="Engine of precision fp32, .onnx.")],
    images: Annotated[
        list[str], typer.Option(help="Photographs: file, folder or glob; again for more. Every third judges.")
    ],
    output: NewEngine,
    threshold: Annotated[float | None, typer.Option(help="KL threshold to compare at; the engine's own.")] = None,
) -> None:
    """Quantise convolutions and linear layers to int8; attention and softmax stay float32.

    Kept only if at least 95 % of the pixels of photographs not used for calibration keep their segment.
    Exit status: 0 done, 1 failed, 2 bad usage.
    """
    path = engine_path(output)
    with one_line_errors():
        check_packages("onnx", "onnxruntime", "scipy")
        from export.quantize import quantize_engine

        done = quantize_engine(engine, images, path, threshold=threshold)
    print(
        f"{done.layers} layers in int8; {done.agreement:.1%} of the pixels of {done.photographs} photographs keep "
        f"their segment; {done.gain:.2f} times as fast with {done.backend}\nwrote {path} and {path}.json",
        file=sys.stderr,
    )

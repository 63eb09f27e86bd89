"""`python -m tools.evaluate mirror PHOTOS`: how many pixels change their segment when a photograph is mirrored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.stages import Stages


def mirrored_shares(stages: Stages, frame: NDArray[np.uint8]) -> tuple[float, float]:
    """Shares of a frame's pixels, 0 to 1, that change when it is mirrored: of all causes, and of the merge alone.

    The labels of the mirror image are mirrored back, and segments are matched one to one. For the merge alone the
    network does not see the mirror image: the frame's own maps are mirrored in its place. `frame`: uint8 [H, W, 3] BGR.
    """
    from export.check.agreement import matched_agreement
    from runtime.pyramid.mirror import mirror_output

    image = np.ascontiguousarray(frame[:, ::-1])
    output = stages.network(stages.gather([stages.resize(frame)]), 1)[0]
    expected = stages.finish(stages.merge(output), frame).labels
    found = stages(image).labels, stages.finish(stages.merge(mirror_output(output, stages.route.tokens)), image).labels
    whole, merge = (1 - matched_agreement(np.ascontiguousarray(one[:, ::-1]), expected) for one in found)
    return whole, merge


def mirror(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Photographs, folders or globs.")],
    engine: Annotated[Path | None, typer.Option(help="Engine file; default: the embedded one.")] = None,
    backend: Annotated[str | None, typer.Option(help="onnxruntime or openvino.")] = None,
    threshold: Annotated[str | None, typer.Option(help="KL threshold, or auto; default: the engine's own.")] = None,
    refine: Annotated[str | None, typer.Option(help="As of diffseg segment.")] = None,
    pieces: Annotated[str | None, typer.Option(metavar="unlike|split|keep", help="As of diffseg segment.")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="As of diffseg segment.")] = False,
    at_most: Annotated[float | None, typer.Option(help="Exit 1 where a larger share changes, such as 0.08.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of text.")] = False,
) -> None:
    """Mean share of pixels whose segment changes when a photograph is mirrored, and what of it is due to the merge.

    The labels of the mirror image are mirrored back, and segments are matched one to one.
    """
    from runtime.frames.decode import read_frame
    from runtime.frames.find import find_sources
    from runtime.options import thresholds_of
    from runtime.segmenter import Segmenter

    given = {"thresholds": thresholds_of(threshold), "refine": refine, "pieces": pieces}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    segmenter = Segmenter.open(engine, "cpu", backend=backend, flip=flip, **options)
    segmenter.stages.route.check_maps("mirror")
    sources, failures = find_sources(inputs)
    if failures or not sources:
        raise DiffSegError(failures[0] if failures else "expected photographs, found none")
    shares = {str(one.path): mirrored_shares(segmenter.stages, read_frame(one.path)) for one in sources}
    whole, merge = np.mean(list(shares.values()), axis=0).tolist()
    report: dict[str, Any] = {
        "photographs": len(shares),
        "changed": whole,
        "merge": merge,
        "network": whole - merge,
        "worst": max(((path, share[0]) for path, share in shares.items()), key=lambda item: item[1]),
    }
    if as_json:
        print(json.dumps(report))
    else:
        print(
            f"{whole:.2%} of pixels change under a mirror image, {merge:.2%} by the merge alone, which has anchors "
            f"and an order; the network adds {100 * (whole - merge):.2f} points; worst {report['worst'][1]:.2%} on "
            f"{report['worst'][0]}; {len(shares)} photographs"
        )
    raise typer.Exit(1 if at_most is not None and whole > at_most else 0)

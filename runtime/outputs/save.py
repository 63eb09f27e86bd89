"""One picture's outputs, written at once."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import DiffSegError
from runtime.outputs.journal import INDEX, Journal
from runtime.outputs.palette import Painter
from runtime.outputs.registry import listings, needing_frame, needing_words, parse_kinds, picture_sinks
from runtime.outputs.sinks import refuse_foreign
from runtime.outputs.target import Target

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from runtime.words import Names


def save_picture(
    stem: Path,
    kinds: str,
    labels: NDArray[np.int32],
    frame: NDArray[np.uint8] | None,
    name: str | None = None,
    words: Names | None = None,
) -> list[Path]:
    """See `runtime.result.Result.save`. `frame` None: it was not kept. `words`: of the segments, if they have them."""
    names = parse_kinds(kinds, "kinds")
    if words is None and (needed := needing_words(names)):
        raise DiffSegError(
            f"kinds: {', '.join(needed)}: expected a result with words, found one without; export an engine "
            "with --words"
        )
    if frame is None:
        if needed := needing_frame(names):
            raise DiffSegError(f"kinds: {', '.join(needed)} needs the frame; call the segmenter with keep_frame=True")
        frame = np.empty((0, 0, 3), np.uint8)
    target = Target(stem, stem.parent, name or stem.name)
    sinks = picture_sinks(names, target).values()
    files = listings(names)
    for listing in files:
        listing.begin(target.folder)
    for sink in sinks:
        refuse_foreign(sink.path)
    index = Journal(target.folder / INDEX, "a run with --resume would skip what is not its own")
    if index.path.exists():
        index.begin()
        index.add(json.dumps({"target": target.key, "made": "Result.save"}).encode() + b"\n")
    colours = Painter()(labels)
    for sink in sinks:
        sink.write(0, Fraction(0), sink.prepare(frame, labels, colours, words))
        sink.close()
    for listing in files:
        listing.finish(target.folder)
    written = [sink.path for sink in sinks]
    return [*written, *(sink.listing for sink in sinks if sink.listing is not None)]

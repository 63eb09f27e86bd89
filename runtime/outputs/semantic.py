"""Semantic pictures: the word of every pixel as an index, and one list of the words for the whole folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import DiffSegError
from runtime.files import OWN_JSON, write_atomically
from runtime.labels import relabel
from runtime.outputs.categories import NO_CLASS
from runtime.outputs.failures import explain
from runtime.outputs.png import encode_png
from runtime.outputs.sinks import FileSink, FrameFolder, Sink, refuse_foreign

if TYPE_CHECKING:
    from fractions import Fraction
    from pathlib import Path

    from numpy.typing import NDArray

    from runtime.outputs.form import ClipForm
    from runtime.outputs.target import Target
    from runtime.words import Names

CLASSES = "semantic.json"


def picture(target: Target) -> Sink:
    """`<stem>_semantic.png`, and `semantic.json` of the folder."""
    return SemanticSink(target, FileSink(target.path("_semantic.png"), _encoded))


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_semantic/000000.png` and so on, and `semantic.json` of the folder."""
    return SemanticSink(target, FrameFolder(target.path("_semantic"), ".png", _encoded))


def semantic_image(labels: NDArray[np.int32], names: Names) -> NDArray[np.uint8]:
    """uint8 [H, W]: the number of every pixel's word, from 1; 0 where the segment has none."""
    return relabel(labels, names.indices()).astype(np.uint8)


def _encoded(
    frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None, names: Names | None
) -> bytes:
    return encode_png(semantic_image(labels, _present(names)))


def _present(names: Names | None) -> Names:
    if names is None:
        raise DiffSegError("semantic: expected segments with words, found none; export an engine with --words")
    return names


class SemanticSink(Sink):
    """PNGs, and before the first one the list of words."""

    def __init__(self, target: Target, files: Sink) -> None:
        """`files`: the PNG of a photograph, or those of a clip's frames."""
        self.path, self._files = files.path, files
        self.listing = target.folder / CLASSES
        self._listed = False

    def prepare(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None = None,
        names: Names | None = None,
    ) -> Any:
        """The PNG, and the words."""
        return self._files.prepare(frame, labels, colours, names), _present(names).words

    def write(self, number: int, time: Fraction, prepared: Any) -> Path | None:
        """Write one PNG, and the list of words where it is not there yet."""
        png, words = prepared
        assert self.listing is not None
        if not self._listed:
            list_classes(self.listing, words)
            self._listed = True
        return self._files.write(number, time, png)

    def close(self) -> None:
        """Finish the PNGs."""
        self._files.close()


def list_classes(path: Path, words: tuple[str, ...]) -> None:
    """Write `classes`, the name of every index in its place, unless they are listed already.

    Raises DiffSegError where the file is another program's or lists other words, or cannot be written.
    """
    text = json.dumps({"info": OWN_JSON, "classes": [NO_CLASS, *words]}) + "\n"
    refuse_foreign(path)
    try:
        if path.exists():
            if path.read_text() != text:
                raise DiffSegError(
                    f"{path}: expected the words of this engine, found those of another one, whose pictures have other "
                    "indices; choose another --output"
                )
            return
        write_atomically(path, text.encode())
    except OSError as error:
        raise explain(path, error, "no picture is written without it") from None

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
    return SemanticSink(target)


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_semantic/000000.png` and so on, and `semantic.json` of the folder."""
    return SemanticFolder(target)


def semantic_image(labels: NDArray[np.int32], names: Names) -> NDArray[np.uint8]:
    """uint8 [H, W]: the number of every pixel's word, from 1; 0 where the segment has none."""
    return relabel(labels, names.indices()).astype(np.uint8)


def _encoded(labels: NDArray[np.int32], names: Names | None) -> tuple[bytes, tuple[str, ...]]:
    """The PNG, and the words. Raises DiffSegError without words."""
    if names is None:
        raise DiffSegError("semantic: expected segments with words, found none; export an engine with --words")
    return encode_png(semantic_image(labels, names)), names.words


def _wordless(frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None) -> bytes:
    return _encoded(labels, None)[0]


class SemanticSink(FileSink):
    """One PNG."""

    def __init__(self, target: Target) -> None:
        super().__init__(target.path("_semantic.png"), _wordless)
        self.listing = target.folder / CLASSES

    def prepare_named(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None,
        names: Names | None,
    ) -> Any:
        """The PNG, and the words."""
        return _encoded(labels, names)

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Write the PNG, and the list of words where it is not there yet."""
        png, words = prepared
        assert self.listing is not None
        list_classes(self.listing, words)
        return super().write(number, time, png)


class SemanticFolder(FrameFolder):
    """A PNG for every frame."""

    def __init__(self, target: Target) -> None:
        super().__init__(target.path("_semantic"), ".png", _wordless)
        self.listing = target.folder / CLASSES

    def prepare_named(
        self,
        frame: NDArray[np.uint8],
        labels: NDArray[np.int32],
        colours: NDArray[np.uint8] | None,
        names: Names | None,
    ) -> Any:
        """The PNG, and the words."""
        return _encoded(labels, names)

    def write(self, number: int, time: Fraction, prepared: Any) -> Path:
        """Write one PNG; before the first one the list of words."""
        png, words = prepared
        assert self.listing is not None
        if not self._written:
            list_classes(self.listing, words)
        return super().write(number, time, png)


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

"""What inputs and engines hold, as hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runtime.engine.external import external_data
from runtime.engine.spec import sidecar_path
from runtime.errors import DiffSegError
from runtime.frames.pictures import numbered_pictures
from runtime.frames.still import Still

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from runtime.frames.source import Source


class HashedStill(Still):
    """A photograph that is hashed when it is read; before that, so that an older hash never covers newer content."""

    def __init__(self, source: Source, found: Callable[[str | None], None]) -> None:
        """`found`: gets the hash."""
        super().__init__(source)
        self._found = found

    def read(self) -> NDArray[np.uint8]:
        """See `Still.read`."""
        self._found(content_of(self._source))
        return super().read()


def content_of(source: Source) -> str | None:
    """A hash of what a source is read from; None for cameras and streams, and for what cannot be read."""
    digest = hashlib.sha256()
    try:
        if source.data is not None:
            digest.update(source.data)
        elif source.address:
            return None
        elif source.path.is_file():
            _update(digest, source.path)
        else:  # numbered pictures
            for path in numbered_pictures(source.path):
                digest.update(path.name.encode(errors="surrogateescape") + b"\0")
                if path.is_file():  # a pipe would be waited for; reading the clip says what is wrong with it
                    _update(digest, path)
    except (OSError, DiffSegError):
        return None
    return digest.hexdigest()


def content_of_engine(path: Path) -> str:
    """A hash of an engine file, its sidecar, and its weights in other files."""
    digest = hashlib.sha256()
    weights = [path.parent / name for name in external_data(path)] if path.suffix.lower() == ".onnx" else []
    for file in (path, sidecar_path(path), *weights):
        if file.is_file():
            digest.update(b"%d " % file.stat().st_size)
            _update(digest, file)
    return digest.hexdigest()


def _update(digest: Any, path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while data := file.read(1 << 20):
            digest.update(data)

"""Labels and the settings they were made with, in one .npz."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.files import OWN_ARCHIVE
from runtime.outputs.archive import ArchiveSink, add_array
from runtime.outputs.draw import label_image
from runtime.outputs.sinks import FileSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from runtime.outputs.form import ClipForm
    from runtime.outputs.sinks import Sink
    from runtime.outputs.target import Target
    from runtime.words import Names


def picture(target: Target) -> Sink:
    """`<stem>_labels.npz`: `labels` and `settings`."""
    settings = _settings(target)

    def encode(
        frame: NDArray[np.uint8], labels: NDArray[np.int32], colours: NDArray[np.uint8] | None, names: Names | None
    ) -> bytes:
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.comment = OWN_ARCHIVE
            add_array(archive, "labels", label_image(labels))
            add_array(archive, "settings", settings)
        return data.getvalue()

    return FileSink(target.path("_labels.npz"), encode)


def clip(target: Target, form: ClipForm, warn: Callable[[str], None]) -> Sink:
    """`<stem>_labels.npz`: as the kind `archive` writes it, and `settings`."""
    return ArchiveSink(target.path("_labels.npz"), {"settings": _settings(target)})


def _settings(target: Target) -> NDArray[Any]:
    """Text, a JSON object, which `numpy.load` reads without pickle."""
    return np.array(json.dumps(dict(target.settings)))

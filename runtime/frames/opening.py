"""Opening a source, whatever its kind."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runtime.frames import registry
from runtime.frames.source import OpenOptions

if TYPE_CHECKING:
    from runtime.frames.clip import Clip
    from runtime.frames.source import Source


def settle_sources(sources: Sequence[Source], **options: Any) -> list[Source]:
    """The sources as they are opened, after the checks that must come before any is opened. Call it once.

    An encoded picture on standard input becomes a source of kind image that holds the picture.
    `options`: the fields of `OpenOptions`.
    Raises UsageError when a source needs an option that was not given, and DiffSegError when it cannot be read.
    """
    settled = []
    for source in sources:
        settle = registry.SOURCES[source.kind].settle
        settled.append(_function(settle)(source, OpenOptions(**options)) if settle else source)
    return settled


def open_clip(source: Source, **options: Any) -> Clip:
    """Open a source. A photograph is a clip of one frame at time 0.

    `options`: the fields of `OpenOptions`. Raises DiffSegError when it cannot be opened.
    """
    clip: Clip = _function(registry.SOURCES[source.kind].opener)(source, OpenOptions(**options))
    return clip


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)

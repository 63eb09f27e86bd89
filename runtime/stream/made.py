"""By what labels are made: a hash of the engine's content, and one of all that changes labels."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from runtime import __version__
from runtime.stream.contents import content_of_engine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.stages import Stages


def engine_of(stages: Stages) -> dict[str, object]:
    """What runs, and where: "engine" is a hash of its content, the others are names. Reads the whole engine file."""
    engine = stages.route.engine
    return {
        "version": __version__,
        "engine": content_of_engine(engine.path) if hasattr(engine, "path") else "",
        "backend": type(engine).__name__,
        "device": engine.device.partition(":")[0],
        "precision": getattr(engine, "precision", None),
    }


def how_made(engine: Mapping[str, object], stages: Stages, **more: object) -> str:
    """A hash of an engine, as `engine_of` gives it, and of the settings; `more`: further settings.

    Two photographs with the same content and hash have the same labels.
    """
    # All but the engine's path: an engine may be moved.
    settings = {name: value for name, value in stages.settings().items() if name != "engine"}
    text = json.dumps({**engine, **settings, **more}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

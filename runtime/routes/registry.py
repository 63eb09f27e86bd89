"""Which route an engine takes: a registry that is data, read once when a Segmenter opens."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from runtime.engine.heads import HEADS
from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from runtime.engine.base import Engine
    from runtime.pyramid.config import MergeConfig
    from runtime.routes.base import Route


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """A route: the family that a head names, whether what it takes stays on the GPU, and the class."""

    gives: str
    on_device: bool
    module: str
    cls: str


# In order of preference: of those that fit an engine the first one that can be opened is taken.
ROUTES = (
    RouteEntry("maps", True, "runtime.routes.device", "DeviceRoute"),
    RouteEntry("maps", False, "runtime.routes.host", "HostRoute"),
    RouteEntry("labels", False, "runtime.routes.graph", "GraphRoute"),
    RouteEntry("features", False, "runtime.routes.features", "FeaturesRoute"),
)


def open_route(engine: Engine, config: MergeConfig, auto: bool = False) -> Route:
    """The route of an open engine.

    Raises DiffSegError where the config does not fit the engine, or where a GPU was asked for by name and cannot merge.
    With the device "auto" such an engine's maps are merged on the host, with a warning.
    """
    gives = HEADS[engine.spec.head].route
    entries = [entry for entry in ROUTES if entry.gives == gives and (engine.on_device or not entry.on_device)]
    for entry in entries:
        cls: type[Route] = getattr(import_module(entry.module), entry.cls)
        try:
            return cls(engine, config, auto)
        except DiffSegError as error:
            if entry is entries[-1] or engine.asked != "auto":
                raise
            logging.getLogger("diffseg").warning("merging on the CPU: %s", error)
    known = ", ".join(dict.fromkeys(entry.gives for entry in ROUTES))
    raise DiffSegError(f"head {engine.spec.head}: no route takes what it gives ({gives}); expected one of {known}")

"""The maps stay on the GPU and are merged there, by the native core: only what is asked for crosses to the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime import native
from runtime.errors import DiffSegError
from runtime.gpu.arrays import to_host
from runtime.merge.likeness import profile_cells
from runtime.merge.parts import choose_parts
from runtime.merge.suppress import suppress
from runtime.native.maps import DeviceMaps
from runtime.result import Merged
from runtime.routes.base import Route

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.engine.base import Engine
    from runtime.gpu.arrays import DeviceArray
    from runtime.pyramid.config import MergeConfig


class DeviceRoute(Route):
    """An output is the attention pyramid of one frame on the GPU, and the words' maps.

    It lasts until the network's next pass.
    """

    overlaps = False

    def __init__(self, engine: Engine, config: MergeConfig, auto: bool = False) -> None:
        """Raises DiffSegError where there is no native core for the GPU, or it cannot do what the config asks for."""
        super().__init__(engine, config, auto)
        if config.solver != "merge":
            raise DiffSegError(
                f"solver: expected merge on device {engine.device}, whose merge core has no other, found "
                f"{config.solver}; use --device cpu, or leave it out"
            )
        self._library = native.load(native.device_number(engine.device), engine.path)

    def network(self, frames: NDArray[np.uint8]) -> list[list[DeviceArray]]:
        """See `Route.network`."""
        pyramid = self.engine.infer_on_device(frames)
        return [[level.frame(number) for level in pyramid] for number in range(len(frames))]

    def merge(
        self,
        output: list[DeviceArray],
        *,
        config: MergeConfig | None = None,
        proposals: bool = False,
        details: bool = False,
        seeds: NDArray[np.float32] | None = None,
    ) -> Merged:
        """See `Route.merge`. A warm start saves nothing here, so seeds are left aside."""
        spec = self.engine.spec
        size = (spec.height, spec.width)
        where: tuple[Any, ...] = (self.tokens, self.layers, self.engine.device, self._library)
        output, words = output[: len(self.tokens)], self.word_maps([to_host(m) for m in output[len(self.tokens) :]])
        try:
            if config is None and self.auto:
                maps = DeviceMaps(output, self.config, profile_cells(self.tokens[0]), *where)
                parts = choose_parts(maps, self.tokens[0], self.config.thresholds)
                raw = suppress(parts.scores, self.tokens[0], size)
                return Merged(raw, parts.proposals, maps.whole() if details else None, words, parts.alike)
            found = native.run(output, config or self.config, size, *where, proposals=proposals, details=details)
        except ValueError as error:  # as for instance a map with a NaN
            raise self.fault(f"maps that are no probabilities: {error}") from None
        kept = None if found.proposals is None else found.proposals[: int(found.segments[0])]
        return Merged(found.labels, kept, found.attention, words)

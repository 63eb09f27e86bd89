"""How the graph of an engine takes frames: a registry that is data. Chosen at export, by `--input`.

The runtime's frames are always uint8 [B, H, W, 3] BGR; an engine with another input gets them converted.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import DiffSegError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class FrameInput:
    """One layout of the graph's input `frame`.

    Attributes:
        name: in the sidecar, and of `python -m export --input`.
        type: of the numbers, "uint8" or "float32".
        planar: [B, 3, H, W] RGB; otherwise [B, H, W, 3] BGR.
        brightest: what a pixel's largest value, 255, becomes.
    """

    name: str
    type: str
    planar: bool
    brightest: int

    def shape(self, batch: int | None, height: int, width: int) -> tuple[int | None, ...]:
        """The shape of the input; None for a batch of any size."""
        return (batch, 3, height, width) if self.planar else (batch, height, width, 3)

    def convert(self, frames: "NDArray[np.uint8]", out: "NDArray[Any] | None" = None) -> "NDArray[Any]":
        """Frames uint8 [B, H, W, 3] BGR as the graph takes them; written to `out`, of that shape and type, if given."""
        import numpy as np

        if out is None:
            if not self.planar:
                return frames
            out = np.empty(self.shape(len(frames), *frames.shape[1:3]), self.type)  # type: ignore[arg-type]
        planes = frames[..., ::-1].transpose(0, 3, 1, 2) if self.planar else frames
        if self.brightest == 255:
            out[...] = planes
        else:
            np.divide(planes, np.float32(255 / self.brightest), out=out, dtype=np.float32)
        return out

    def __str__(self) -> str:
        """For people: `float32 [B, 3, H, W] RGB, 0 to 1`."""
        sides = "3, H, W] RGB" if self.planar else "H, W, 3] BGR"
        return f"{self.type} [B, {sides}, 0 to {self.brightest}"


def find_input(name: str) -> FrameInput:
    """The entry of FRAME_INPUTS. Raises DiffSegError, with the known names, for another name."""
    if name not in FRAME_INPUTS:
        raise DiffSegError(f"--input: expected {', '.join(FRAME_INPUTS)}, found {name!r}")
    return FRAME_INPUTS[name]


FRAME_INPUTS: dict[str, FrameInput] = {
    each.name: each
    for each in (
        FrameInput("uint8-nhwc-bgr", "uint8", False, 255),
        FrameInput("float-nchw-rgb", "float32", True, 255),
        FrameInput("float-nchw-rgb-unit", "float32", True, 1),
    )
}

# What the runtime has, so that nothing is converted.
DEFAULT_INPUT = FRAME_INPUTS["uint8-nhwc-bgr"]

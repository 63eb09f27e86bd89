"""Original checkpoint files: their header tells which model they contain."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from export.model.families import SD, SDXL, SUPPORTED
from runtime.errors import DiffSegError
from runtime.files import DAMAGE

AGAIN = "the download may have stopped halfway, download it again"


def read_header(path: Path) -> dict[str, list[int]]:
    """Names and shapes of the tensors in a safetensors file.

    Raises DiffSegError when the file has another format or is cut off.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= 100_000_000:
                raise ValueError
            if length + 8 > size:
                raise DiffSegError(f"{path} is cut off in its header, at {size} bytes; {AGAIN}")
            header = json.loads(file.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
            shapes = {name: list(entry["shape"]) for name, entry in tensors.items()}
    except OSError as error:
        raise DiffSegError(f"cannot read {path}: {error.strerror}") from None
    except (*DAMAGE, struct.error):
        raise DiffSegError(
            f"{path} is not a .safetensors file; expected a diffusers folder, a hub id, or an original Stable "
            "Diffusion checkpoint in that format"
        ) from None
    if end > size:
        raise DiffSegError(f"{path} is cut off: {size} of {end} bytes; {AGAIN}")
    return shapes


@dataclass(frozen=True, slots=True)
class Layout:
    """A kind of checkpoint file.

    `matches`: a test on the names and shapes of its tensors. `name`: for people. A kind that can be exported also has
    `config`, the hub id of its configuration, and `family`, the name of its family.
    """

    matches: Callable[[dict[str, list[int]]], bool]
    name: str
    config: str | None = None
    family: str | None = None


_UNET = "model.diffusion_model.input_blocks.0.0.weight"
_XL = "conditioner.embedders.1.model.token_embedding.weight"


def _starts(*prefixes: str) -> Callable[[dict[str, list[int]]], bool]:
    return lambda names: any(name.startswith(prefixes) for name in names)


#: Tried in order. Only the last three can be exported: the layouts that Stable Diffusion was published in.
LAYOUTS = (
    Layout(lambda names: any("double_blocks." in n or "single_blocks." in n for n in names), "a Flux model"),
    Layout(lambda names: any("joint_blocks." in n for n in names), "a Stable Diffusion 3 model"),
    Layout(lambda names: any(".lora_" in n or n.startswith("lora_") for n in names), "a LoRA"),
    Layout(_starts("control_model.", "controlnet_"), "a ControlNet"),
    Layout(_starts("conditioner.embedders.0.model."), "a Stable Diffusion XL refiner"),
    Layout(_starts("down_blocks.", "unet.", "encoder.", "decoder."), "one component, not a whole checkpoint"),
    Layout(lambda names: _UNET not in names, "not a Stable Diffusion checkpoint"),
    Layout(lambda names: _XL in names, "Stable Diffusion XL", "stabilityai/stable-diffusion-xl-base-1.0", SDXL.name),
    Layout(_starts("cond_stage_model.model."), "Stable Diffusion 2.x", "stabilityai/stable-diffusion-2-1", SD.name),
    Layout(
        _starts("cond_stage_model.transformer."),
        "Stable Diffusion 1.x",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        SD.name,
    ),
)


def recognise(checkpoint: Path) -> Layout:
    """The layout of a checkpoint file that can be exported, found by its header.

    Raises DiffSegError when the file is not a safetensors file or its layout cannot be exported.
    """
    shapes = read_header(checkpoint)
    layout = next((layout for layout in LAYOUTS if layout.matches(shapes)), None)
    if layout is None or layout.config is None:
        kind = layout.name if layout else "a U-Net without its text encoder"
        raise DiffSegError(f"{checkpoint} is {kind}; supported, in the original layout or as a folder: {SUPPORTED}")
    channels, latent = shapes[_UNET][1], shapes.get("first_stage_model.encoder.conv_out.weight", [8])[0] // 2
    if channels != latent:
        raise DiffSegError(
            f"{checkpoint}: its U-Net takes {channels} channels and its VAE gives {latent}; expected the same number "
            "(models for inpainting, depth or editing also take an image)"
        )
    return layout

"""What the export of a model would give, from its configuration alone: no weight is read, nothing is written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from export.model.families import BLOCKS, Config, check_frame_size, frame_stride, native_size, vae_stride
from export.model.load import quiet_libraries
from export.model.source import find_model, first_line
from runtime.engine.spec import Level
from runtime.errors import DiffSegError


@dataclass(frozen=True, slots=True)
class Description:
    """An export in numbers.

    `height`, `width`: of the frame, in pixels. `native_size`: side of the frames that the model was trained on.
    `stride`: height and width must be multiples of it. `levels`: the pyramid, finest first. `parameters`: how many the
    model's U-Net and VAE encoder have; the export drops those that follow the last map.
    """

    source: str
    family: str
    vae: str
    height: int
    width: int
    native_size: int
    stride: int
    levels: tuple[Level, ...]
    parameters: dict[str, int]
    thresholds: tuple[float, ...]


def describe(
    model: str,
    size: tuple[int, int] | None = None,
    blocks: Sequence[str] = BLOCKS,
    *,
    revision: str | None = None,
    vae: str | None = None,
    config: str | None = None,
) -> Description:
    """Describe the export of `model`; the arguments are those of an export.

    Raises DiffSegError when the model cannot be exported or the size does not fit.
    """
    source = find_model(model, revision, vae=vae, config=config)
    side = native_size(source.unet, source.vae)
    height, width = size or (side, side)
    check_frame_size(height, width, frame_stride(source.unet, source.vae))
    import diffusers
    import torch

    quiet_libraries()
    try:
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel.from_config(dict(source.unet))
            encoder = getattr(diffusers, source.vae_class).from_config(dict(source.vae)).encoder
    except Exception as error:
        raise DiffSegError(
            f"{model}: no model can be built from its configuration ({first_line(error)}); download it again"
        ) from None
    stride = vae_stride(source.vae)
    levels = _levels(unet, height // stride, width // stride, blocks)
    check_levels(levels, blocks)
    return Description(
        source=source.name,
        family=_generation(source.family.name, source.unet),
        vae=f"{source.vae_name or 'its own'} ({source.vae_class})",
        height=height,
        width=width,
        native_size=side,
        stride=frame_stride(source.unet, source.vae),
        levels=levels,
        parameters={
            name: sum(parameter.numel() for parameter in module.parameters())
            for name, module in (("U-Net", unet), ("VAE encoder", encoder))
        },
        thresholds=source.family.thresholds,
    )


def check_levels(levels: Sequence[Level], blocks: Sequence[str]) -> None:
    """Raise DiffSegError when the chosen blocks of the U-Net have no self-attention."""
    if not levels:
        raise DiffSegError(
            f"--attention: the blocks {','.join(blocks)} of this model have no self-attention; choose others of "
            f"{','.join(BLOCKS)}"
        )


def _generation(family: str, unet: Config) -> str:
    """A more precise name than the family's, found by settings in which the published models differ."""
    if unet.get("addition_embed_type"):
        return family
    number = {768: "1.x", 1024: "2.x"}.get(unet.get("cross_attention_dim", 0))
    small = unet.get("mid_block_type", "") is None or unet.get("layers_per_block", 2) == 1
    return f"Stable Diffusion{f' {number}' if number else ''}{', distilled' if small else ''}"


def _levels(unet: Any, height: int, width: int, blocks: Sequence[str]) -> tuple[Level, ...]:
    """The pyramid of a U-Net on the meta device for latents of `height` × `width`: shapes only, no arithmetic."""
    import torch

    layers: dict[int, int] = {}

    def note(_module: Any, inputs: tuple[Any, ...]) -> None:
        tokens = inputs[0].shape[1]
        layers[tokens] = layers.get(tokens, 0) + 1

    for name, module in unet.named_modules():
        if name.endswith(".attn1") and name.split("_")[0] in blocks:
            module.register_forward_pre_hook(note)
    config = unet.config
    conditions = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        conditions = {
            "text_embeds": torch.empty(1, pooled, device="meta"),
            "time_ids": torch.empty(1, 6, device="meta"),
        }
    with torch.no_grad():
        unet(
            torch.empty(1, config.in_channels, height, width, device="meta"),
            torch.empty(1, device="meta"),
            torch.empty(1, 1, config.cross_attention_dim, device="meta"),
            added_cond_kwargs=conditions,
        )
    return tuple(
        Level(h := round(math.sqrt(n * height / width)), n // h, count)
        for n, count in sorted(layers.items(), reverse=True)
    )

"""`python -m tools.tiny mean FIRST SECOND --output FOLDER`: the mean of the weights of two models.

Where one model continues the training of the other, their mean is often better than both: Wortsman et al., "Robust
fine-tuning of zero-shot models" (CVPR 2022).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import UsageError
from tools.tiny import model as tiny_model


def mean(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="Diffusers folder that tune wrote.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Diffusers folder of a model tuned from the first.")],
    output: Annotated[Path, typer.Option(help="Diffusers folder to write.")],
) -> None:
    """Write the mean of two models, one of which continues the training of the other."""
    for folder in (first, second):
        tiny_model.check_pipeline(folder)
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    parts = []
    for kind, name in ((AutoencoderKL, "vae"), (UNet2DConditionModel, "unet")):
        own, other = (kind.from_pretrained(folder / name) for folder in (first, second))
        weights, others = own.state_dict(), other.state_dict()
        shapes, expected = ({key: value.shape for key, value in each.items()} for each in (others, weights))
        if shapes != expected or own.config.get("scaling_factor") != other.config.get("scaling_factor"):
            raise UsageError(f"{second}: expected a model tuned from {first}, found another one; tune it from that one")
        with torch.no_grad():
            own.load_state_dict({key: (value + others[key]) / 2 for key, value in weights.items()})
        parts.append(own)
    text_encoder = CLIPTextModel.from_pretrained(first / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(first / "tokenizer")
    tiny_model.save_pipeline(output, parts[0], parts[1], text_encoder, tokenizer)

"""The tiny model's architecture: a pipeline of Stable Diffusion's kind with random weights, and its folder on disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UsageError

if TYPE_CHECKING:
    import torch

LATENT_CHANNELS = 8
TEXT_WIDTH = 32

# Full size, and one small enough for tests.
UNET_CHANNELS = {"tiny": (64, 128, 128, 64), "test": (16, 16, 32, 32)}
VAE_CHANNELS = {"tiny": (16, 24, 48, 64), "test": (8, 8, 16, 16)}


def build_autoencoder(size: str = "tiny") -> Any:
    """An `AutoencoderKL` with 8× reduction, whose encoder is cheap at the frame's own resolution."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=VAE_CHANNELS[size],
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=256,
    )


def build_unet(size: str = "tiny") -> Any:
    """A `UNet2DConditionModel` with self-attention at 32, 16, 8 and 4 (for a frame of 256×256).

    Keys start as a copy of the queries, so that attention is a similarity of contents from the first step.
    """
    import torch
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=UNET_CHANNELS[size],
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,  # in this class: the number of heads
        norm_num_groups=8,
    )
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith("attn1"):
                module.to_q.weight *= 2.0
                module.to_k.weight.copy_(module.to_q.weight)
    return unet


def build_text_encoder() -> Any:
    """A random one-layer `CLIPTextModel`; its embedding of the empty prompt is a constant of the model."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=4,
            hidden_size=TEXT_WIDTH,
            intermediate_size=TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=4,
            projection_dim=TEXT_WIDTH,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=3,
        )
    ).eval()


def build_scheduler() -> Any:
    """Stable Diffusion's noise schedule with v-prediction."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_tokenizer(folder: Path, length: int = 4, more: Sequence[str] = ()) -> Any:
    """A `CLIPTokenizer` of four words and `more`, written to `folder`; `length`: tokens of every prompt."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = {"a</w>": 0, "b</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}
    words |= {f"{word}</w>": number for number, word in enumerate(more, len(words))}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length, pad_token="<|endoftext|>"
    )


def empty_prompt(text_encoder: Any, tokenizer: Any) -> torch.Tensor:
    """The embedding of the empty prompt, float32 [1, 4, 32]."""
    import torch

    tokens = tokenizer(
        "", padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return text_encoder(tokens.input_ids)[0]


def check_pipeline(folder: Path) -> None:
    """Raise UsageError where `folder` is no pipeline as `save_pipeline` writes them."""
    if not (folder / "model_index.json").is_file():
        raise UsageError(
            f"{folder}: expected a diffusers folder with model_index.json, as 'tools.tiny train' and 'tune' write"
        )


def save_pipeline(folder: Path, vae: Any, unet: Any, text_encoder: Any, tokenizer: Any) -> None:
    """Write a `StableDiffusionPipeline` folder, whole or not at all; it replaces an older one of this name."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)

"""Pipelines of random weights in the shapes of published models, small and full-size: for tests and benchmarks.

Random weights give almost uniform maps, in which a comparison finds no difference. Queries and keys of self-attention
are therefore scaled until the mean KL divergence of rows to uniform exceeds 0.5.
"""
# Long because the shapes of all published families are one table.

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TOKENS = 77
WORDS = (
    ",",
    "c",
    "d",
    "e",
    "f",
    "g",
)  # what the tokenizer knows in addition, on request: of one letter, as it has no merges
_CROSS_DOWN, _CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"


@dataclass(frozen=True, slots=True)
class RandomFamily:
    """Settings of one model.

    `unet`, `vae`: of diffusers' classes. `text`: of each CLIP text encoder in turn. `sharpness`: the factor on queries
    and keys. `dtype`: of the weights; float16 where float32 would not fit into 10 GB.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: tuple[Mapping[str, Any], ...]
    sharpness: float = 5.0
    dtype: str = "float32"
    schedule: Mapping[str, Any] = field(default_factory=dict)


_SMALL_UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}
_SMALL_VAE: dict[str, Any] = {
    "block_out_channels": (16, 16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
_SMALL_TEXT: dict[str, Any] = {
    "vocab_size": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
_FULL_VAE: dict[str, Any] = _SMALL_VAE | {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 512,
}
_FULL_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_SD2_UNET: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
_SD2_TEXT: dict[str, Any] = _FULL_TEXT | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
_XL_UNET: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", _CROSS_DOWN, _CROSS_DOWN),
    "up_block_types": (_CROSS_UP, _CROSS_UP, "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
# Of the published SSD-1B and Segmind-Vega, distilled from SDXL: numbers of transformer layers that differ from block to
# block, and a mid block without attention.
_SSD: dict[str, Any] = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [[1], [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}
_VEGA: dict[str, Any] = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [[1], [1, 1], [2, 2]],
    "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
}
# Shapes of the published BK-SDM: "small" has no mid block, "tiny" also lacks the lowest level.
_NO_MID: dict[str, Any] = {"mid_block_type": None}
_THREE_LEVELS: dict[str, Any] = _NO_MID | {"down_block_types": (_CROSS_DOWN,) * 3, "up_block_types": (_CROSS_UP,) * 3}

FAMILIES: dict[str, RandomFamily] = {
    "small": RandomFamily(_SMALL_UNET, _SMALL_VAE, (_SMALL_TEXT,)),
    "small-sd2": RandomFamily(
        _SMALL_UNET | {"use_linear_projection": True, "attention_head_dim": (2, 4, 8, 8), "upcast_attention": True},
        _SMALL_VAE,
        (_SMALL_TEXT | {"hidden_act": "gelu", "num_hidden_layers": 2},),
        schedule={"prediction_type": "v_prediction"},
    ),
    "small-bk": RandomFamily(_SMALL_UNET | _NO_MID, _SMALL_VAE, (_SMALL_TEXT,)),
    "small-tiny-sd": RandomFamily(
        _SMALL_UNET | _THREE_LEVELS | {"block_out_channels": (32, 64, 64)}, _SMALL_VAE, (_SMALL_TEXT,)
    ),
    "small-sdxl": RandomFamily(
        _SMALL_UNET
        | _XL_UNET
        | {
            "block_out_channels": (32, 64, 64),
            "attention_head_dim": (2, 4, 8),
            "transformer_layers_per_block": (1, 1, 2),
            "cross_attention_dim": 80,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 48 + 6 * 8,
        },
        _SMALL_VAE | {"scaling_factor": 0.13025, "force_upcast": True},
        (
            _SMALL_TEXT | {"num_hidden_layers": 2},
            _SMALL_TEXT | {"hidden_size": 48, "projection_dim": 48, "num_hidden_layers": 2, "hidden_act": "gelu"},
        ),
    ),
    "sd15": RandomFamily({"sample_size": 64, "cross_attention_dim": 768}, _FULL_VAE, (_FULL_TEXT,)),
    "sd21": RandomFamily(_SD2_UNET, _FULL_VAE, (_SD2_TEXT,)),
    "sd21-v": RandomFamily(
        _SD2_UNET | {"sample_size": 96, "upcast_attention": True},
        _FULL_VAE | {"sample_size": 768},
        (_SD2_TEXT,),
        schedule={"prediction_type": "v_prediction"},
    ),
    "sdxl": RandomFamily(
        _XL_UNET
        | {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 1280 + 6 * 256,
        },
        _FULL_VAE | {"scaling_factor": 0.13025, "force_upcast": True, "sample_size": 1024},
        (
            _FULL_TEXT,
            _FULL_TEXT
            | {
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_attention_heads": 20,
                "projection_dim": 1280,
                "hidden_act": "gelu",
            },
        ),
        dtype="float16",
    ),
}

# Two levels, of which one has attention: quick to trace.
FAMILIES["least"] = RandomFamily(
    _SMALL_UNET
    | {"block_out_channels": (32, 32), "down_block_types": (_CROSS_DOWN, "DownBlock2D"), **_NO_MID}
    | {"up_block_types": ("UpBlock2D", _CROSS_UP)},
    _SMALL_VAE
    | {"block_out_channels": (16, 16), "down_block_types": ("DownEncoderBlock2D",) * 2}
    | {"up_block_types": ("UpDecoderBlock2D",) * 2},
    (_SMALL_TEXT,),
)
for _name, _layers in (("ssd-1b", _SSD), ("segmind-vega", _VEGA)):
    for _size in ("", "small-"):
        _xl = FAMILIES[f"{_size}sdxl"]
        FAMILIES[f"{_size}{_name}"] = replace(_xl, unet={**_xl.unet, "layers_per_block": 2, **_layers})


def save_random_pipeline(
    folder: Path,
    family: str = "small",
    *,
    sharpness: float | None = None,
    seed: int = 0,
    quick: str | None = None,
    words: bool = False,
    **unet: Any,
) -> Path:
    """Write a diffusers folder of random weights, component by component, and return `folder`.

    `family`: a name in `FAMILIES`. `sharpness`: in place of the family's. `unet`: settings of the U-Net that differ.
    `quick`: a type for weights that are drawn in a tenth of the time, too roughly for meaningful maps. `words`: the
    tokenizer knows `WORDS`, and the queries and keys of cross-attention are scaled, too.
    """
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from export.model.load import quiet_libraries
    from tools.tiny.model import build_scheduler, build_tokenizer

    quiet_libraries()
    shape = FAMILIES[family]
    dtype = getattr(torch, quick or shape.dtype)
    torch.manual_seed(seed)
    index: dict[str, Any] = {}
    more = WORDS if words else ()

    def save(part: str, module: Any) -> None:
        if quick and hasattr(module, "parameters"):  # a tokenizer has none
            _fill(module)
        module.save_pretrained(folder / part)
        index[part] = (type(module).__module__.split(".")[0], type(module).__name__)

    # One after the other, so that memory holds only one of them at a time.
    with default_dtype(dtype), _unfilled() if quick else nullcontext(), tempfile.TemporaryDirectory() as scratch:
        layers = ("attn1", "attn2") if words else ("attn1",)
        settings = {**shape.unet, **unet}
        save("unet", _sharpen(diffusers.UNet2DConditionModel(**settings), sharpness or shape.sharpness, *layers))
        save("vae", diffusers.AutoencoderKL(**shape.vae))
        for number, text in enumerate(shape.text):
            known = {**text, "vocab_size": text["vocab_size"] + len(more)}
            config = CLIPTextConfig(
                **known, max_position_embeddings=TOKENS, bos_token_id=2, eos_token_id=3, pad_token_id=3
            )
            suffix = f"_{number + 1}" if number else ""
            save(f"text_encoder{suffix}", (CLIPTextModelWithProjection if number else CLIPTextModel)(config))
            save(f"tokenizer{suffix}", build_tokenizer(Path(scratch), TOKENS, more))
    schedule = {"prediction_type": "epsilon", **shape.schedule}
    save("scheduler", diffusers.DDIMScheduler.from_config(build_scheduler().config, **schedule))
    cls = "StableDiffusionXLPipeline" if len(shape.text) > 1 else "StableDiffusionPipeline"
    index = {"_class_name": cls, "_diffusers_version": diffusers.__version__, **index}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def _sharpen(unet: Any, sharpness: float, *layers: str) -> Any:
    """Multiply the queries and keys of every self-attention, attn1, or cross-attention, attn2."""
    import torch

    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith(tuple(f"{layer}.{part}" for layer in layers for part in ("to_q", "to_k"))):
                module.weight.mul_(sharpness)
    return unet


def _fill(module: Any) -> None:
    """Fill all weights from one random strip, each from another offset."""
    import torch

    strip = torch.randn(2**20, dtype=torch.float32).mul_(0.02)
    for index, weight in enumerate(module.parameters()):
        flat = weight.data.view(-1)
        shifted = strip.roll(7919 * index).to(flat.dtype)
        for start in range(0, len(flat), len(shifted)):
            part = flat[start : start + len(shifted)]
            part.copy_(shifted[: len(part)])


@contextlib.contextmanager
def _unfilled() -> Iterator[None]:
    """Leave the weights of modules made inside uninitialised."""
    from unittest import mock

    import torch

    with contextlib.ExitStack() as stack:
        for name in ("kaiming_uniform_", "uniform_", "normal_", "trunc_normal_"):
            stack.enter_context(mock.patch.object(torch.nn.init, name, lambda weight, *_, **__: weight))
        yield


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside have weights of `dtype`."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)

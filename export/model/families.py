"""Which models can be exported, as data: pipeline classes, text encoders, and settings that are refused.

Everything here reads configuration files only: a model is accepted or refused before torch is imported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.errors import DiffSegError

Config = Mapping[str, Any]
BLOCKS = ("down", "mid", "up")  # the parts of a U-Net, in order of execution


@dataclass(frozen=True, slots=True)
class TextPart:
    """One text encoder of a pipeline.

    `hidden`: index of the layer whose states are the embedding; None means the last layer, after its norm.
    """

    tokenizer: str
    encoder: str
    classes: tuple[str, ...]
    hidden: int | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """Pipelines that are loaded in the same way.

    `text`: encoders whose states are concatenated along the channels. `addition`: the U-Net's `addition_embed_type`;
    if it is set, the U-Net also takes the pooled output of the last encoder. `upcast_vae`: a VAE whose configuration
    has `force_upcast` stays in float32 when the rest is float16. `thresholds`: default KL thresholds of the merge.
    """

    name: str
    pipelines: tuple[str, ...]
    text: tuple[TextPart, ...]
    addition: str | None = None
    upcast_vae: bool = False
    thresholds: tuple[float, ...] = (1.1, 1.1, 1.1)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the components that a pipeline folder must contain."""
        return ("unet", "vae", *(part for text in self.text for part in (text.tokenizer, text.encoder)))


SD = Family(
    "Stable Diffusion 1.x and 2.x, distilled ones too",
    ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    (TextPart("tokenizer", "text_encoder", ("CLIPTextModel",)),),
)
SDXL = Family(
    "Stable Diffusion XL",
    ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    (
        TextPart("tokenizer", "text_encoder", ("CLIPTextModel",), -2),
        TextPart("tokenizer_2", "text_encoder_2", ("CLIPTextModelWithProjection",), -2),
    ),
    addition="text_time",
    upcast_vae=True,
)
FAMILIES = (SD, SDXL)
VAES = ("AutoencoderKL", "AutoencoderTiny")
SUPPORTED = "; ".join(f"{family.name} ({', '.join(family.pipelines)})" for family in FAMILIES)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A setting that cannot be exported: its key, a test on its value, and the reason."""

    key: str
    refused: Callable[[Any], bool]
    reason: str


def _is_set(value: Any) -> bool:
    return value is not None


def _holds_true(value: Any) -> bool:
    return any(value) if isinstance(value, (list, tuple)) else bool(value)


def _other_than(*known: Any) -> Callable[[Any], bool]:
    return lambda value: any(v not in known for v in (value if isinstance(value, (list, tuple)) else [value]))


UNET_REFUSALS = (
    Refusal("class_embed_type", _is_set, "it is conditioned on a class (an upscaler or unCLIP model)"),
    Refusal("num_class_embeds", _is_set, "it is conditioned on a class or noise level (an upscaler)"),
    Refusal("encoder_hid_dim_type", _is_set, "it projects its conditioning (Kandinsky, IP-Adapter)"),
    Refusal("encoder_hid_dim", _is_set, "it projects its conditioning (DeepFloyd, Kandinsky)"),
    Refusal("time_cond_proj_dim", _is_set, "it is conditioned on a guidance scale (a latent consistency model)"),
    Refusal("only_cross_attention", _holds_true, "its blocks have no self-attention"),
    Refusal("mid_block_only_cross_attention", _holds_true, "its mid block has no self-attention"),
    Refusal("dual_cross_attention", _holds_true, "its cross-attention is of another kind"),
    Refusal("cross_attention_norm", _is_set, "its cross-attention has norms of its own"),
    Refusal("attention_type", _other_than(None, "default"), "its attention is of another kind (GLIGEN)"),
    Refusal("resnet_time_scale_shift", _other_than(None, "default"), "its blocks condition on time in another way"),
    Refusal("time_embedding_type", _other_than(None, "positional"), "its time embedding is of another kind"),
    Refusal("down_block_types", _other_than("DownBlock2D", "CrossAttnDownBlock2D"), "its blocks are of another kind"),
    Refusal("up_block_types", _other_than("UpBlock2D", "CrossAttnUpBlock2D"), "its blocks are of another kind"),
    Refusal("mid_block_type", _other_than(None, "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"), "it is of another kind"),
)
VAE_REFUSALS = (
    Refusal("latents_mean", _is_set, "its latents have a mean and deviation of their own"),
    Refusal("shift_factor", _holds_true, "its latents are shifted (Flux, Stable Diffusion 3)"),
)


def family_of(model: str, index: Config) -> Family:
    """The family of a pipeline, found by its model_index.json.

    Raises DiffSegError, which names the supported families, when the pipeline belongs to none of them.
    """
    found = index.get("_class_name")
    family = next((family for family in FAMILIES if found in family.pipelines), None)
    if family is None:
        raise DiffSegError(f"{model} is a {found}; supported: {SUPPORTED}")
    if index.get("requires_aesthetics_score"):
        raise DiffSegError(f"{model} is a Stable Diffusion XL refiner; supported: {SUPPORTED}; pass its base model")
    expected = {"unet": ("UNet2DConditionModel",), "vae": VAES}
    expected |= {text.encoder: text.classes for text in family.text}
    for part in family.parts:
        kind = (index.get(part) or [None, None])[1]
        if kind is None:
            raise DiffSegError(
                f"{model} has no {part} in its model_index.json; expected a whole diffusers pipeline with "
                f"{', '.join(family.parts)}"
            )
        if kind not in expected.get(part, (kind,)):
            raise DiffSegError(f"{model}: its {part} is a {kind}; supported: {', '.join(expected[part])}")
    return family


def check_unet(model: str, family: Family, unet: Config, vae: Config) -> None:
    """Raise DiffSegError, with the setting and the reason, for a U-Net that the export would get wrong."""
    _refuse(model, "U-Net", unet, UNET_REFUSALS)
    addition = unet.get("addition_embed_type")
    if addition != family.addition:
        raise DiffSegError(
            f"{model}: its U-Net has addition_embed_type {addition!r}; expected {family.addition!r} of {family.name}"
        )
    kinds = (*unet.get("down_block_types", ["CrossAttn"]), unet.get("mid_block_type"), *unet.get("up_block_types", []))
    if not any("CrossAttn" in (kind or "") for kind in kinds):
        raise DiffSegError(f"{model}: its U-Net has no attention; expected {', '.join(UNETS_WITH_ATTENTION)}")
    takes, gives = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if takes != gives:
        raise DiffSegError(
            f"{model}: its U-Net takes {takes} channels and the VAE gives {gives}; expected the same number (models "
            "for inpainting, depth or editing also take an image; a VAE must be made for its U-Net)"
        )


UNETS_WITH_ATTENTION = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")


def check_vae(model: str, kind: str, vae: Config) -> None:
    """Raise DiffSegError, with the setting and the reason, for a VAE that the export would get wrong."""
    if kind not in VAES:
        raise DiffSegError(f"{model}: its VAE is a {kind}; supported: {', '.join(VAES)}")
    _refuse(model, "VAE", vae, VAE_REFUSALS)


def _refuse(model: str, part: str, config: Config, refusals: tuple[Refusal, ...]) -> None:
    for refusal in refusals:
        if refusal.key in config and refusal.refused(config[refusal.key]):
            raise DiffSegError(
                f"{model}: its {part} has {refusal.key} {config[refusal.key]!r}: {refusal.reason}; supported: "
                f"{SUPPORTED}"
            )


def vae_stride(vae: Config) -> int:
    """How many pixels one latent covers, along each side."""
    blocks = vae.get("encoder_block_out_channels") or vae.get("block_out_channels") or [0]
    return 2 ** (len(blocks) - 1)


def frame_stride(unet: Config, vae: Config) -> int:
    """Pixels by which a frame's height and width must be divisible: the VAE's stride times the U-Net's."""
    return vae_stride(vae) * 2 ** (len(unet.get("down_block_types") or "1234") - 1)


def native_size(unet: Config, vae: Config) -> int:
    """Side in pixels of the frames that the model was trained on, rounded down to a multiple of its stride."""
    sample = unet.get("sample_size") or 64
    side = (max(sample) if isinstance(sample, (list, tuple)) else int(sample)) * vae_stride(vae)
    stride = frame_stride(unet, vae)
    return max(side // stride, 1) * stride


def check_frame_size(height: int, width: int, stride: int) -> None:
    """Raise DiffSegError, with the nearest valid size, unless both sides of a frame are multiples of `stride`."""
    if height % stride or width % stride or min(height, width) <= 0:
        nearest = (max(round(side / stride), 1) * stride for side in (height, width))
        raise DiffSegError(
            f"size {height}x{width} does not fit: this model takes multiples of {stride}; for example "
            f"{'x'.join(map(str, nearest))}"
        )

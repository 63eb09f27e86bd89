"""What a U-Net is told beside the latent (timestep, frame size, noise level), turned into constants of the graph."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from export.model.load import Pipeline


class _NoTimeEmbedding(nn.Module):
    """Stands where the time embedding was, once its effect lives in the convolutions' biases."""

    def forward(self, *_: object) -> None:
        return None


def added_conditions(pipeline: "Pipeline", height: int, width: int) -> dict[str, Tensor] | None:
    """What Stable Diffusion XL is told besides: pooled prompt [1, channels] and time ids [1, 6], float32.

    The ids are the picture's original size, the corner it was cropped at, and its target size (SDXL paper, section
    2.2): here a whole frame. None for the families without.
    """
    if pipeline.pooled_embedding is None:
        return None
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
    return {"text_embeds": pipeline.pooled_embedding, "time_ids": time_ids}


def fold_timestep(unet: Any, timestep: int, conditions: dict[str, Tensor] | None = None) -> None:
    """Make the timestep a constant: each residual block's time projection becomes part of a convolution's bias.

    `conditions`: see `added_conditions`; they are part of the time embedding. All of it is computed in float32 and
    rounded once, to the type of the bias. Raises DiffSegError for blocks that condition on time in another way.
    """
    sample = torch.zeros(1, 1)  # float32: only its type and batch are read
    unet.time_embedding.float()
    embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=torch.tensor(timestep)))
    if conditions is not None:
        unet.add_embedding.float()
        embedding = embedding + unet.get_aug_embed(embedding, None, conditions)
        unet.add_embedding = None
        unet.register_to_config(addition_embed_type=None)
    if unet.time_embed_act is not None:
        embedding = unet.time_embed_act(embedding)
    for name, block in unet.named_modules():
        projection = getattr(block, "time_emb_proj", None)
        if projection is None:
            continue
        if block.time_embedding_norm != "default":
            raise DiffSegError(
                f"residual block {name} conditions on time by '{block.time_embedding_norm}'; supported: 'default'"
            )
        activated = embedding if block.skip_time_act else block.nonlinearity(embedding)
        shift = functional.linear(activated, projection.weight.float(), projection.bias.float())[0]
        bias = block.conv1.bias
        block.conv1.bias = nn.Parameter((bias.float() + shift).to(bias.dtype), requires_grad=False)
        block.time_emb_proj = None
    unet.time_embedding, unet.time_embed_act = _NoTimeEmbedding(), None


def fixed_noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    """Noise [1, channels, height, width] of a seed, float32: the same for every frame and on every machine."""
    return torch.randn(1, channels, height, width, generator=torch.Generator("cpu").manual_seed(seed))


def noise_constants(pipeline: "Pipeline", timestep: int, noise: Tensor) -> tuple[float, Tensor]:
    """√ᾱ and √(1−ᾱ)·`noise` of a timestep, ᾱ from the model's own schedule: latent_t = √ᾱ·latent + √(1−ᾱ)·noise."""
    alpha = noise_scheduler(pipeline).alphas_cumprod[timestep]
    return float(alpha.sqrt()), (1 - alpha).sqrt() * noise


def noise_scheduler(pipeline: "Pipeline") -> Any:
    """A scheduler with the model's noise schedule. Raises DiffSegError where the model has none of that kind.

    A DDIMScheduler, whatever the model samples with: the betas are the same, and its `add_noise` keeps the variance.
    """
    from diffusers import DDIMScheduler

    config = pipeline.schedule
    if config is None or "beta_schedule" not in config:
        raise DiffSegError(
            f"{pipeline.source} has no noise schedule (scheduler/scheduler_config.json with a beta_schedule), which "
            "--noise-seed needs; leave that option out"
        )
    return DDIMScheduler.from_config(config)

"""Timestep, frame size and noise, which a U-Net takes in addition to the latent, become constants of the graph."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from export.model.load import LoadedModel


class _NoTimeEmbedding(nn.Module):
    """Replaces the time embedding after the biases of the convolutions contain its effect."""

    def forward(self, *_: object) -> None:
        return None


class _BiasedByPrompt(nn.Module):
    """A convolution [P·B, …] with one bias for each of P prompts, which all have B pictures one after the other."""

    biases: Tensor

    def __init__(self, convolution: nn.Conv2d, biases: Tensor) -> None:
        """`biases`: [P, channels], in place of the convolution's own."""
        super().__init__()
        self.convolution = convolution
        convolution.bias = None
        self.register_buffer("biases", biases[:, None, :, None, None])

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[P·B, C, h, w] → [P·B, channels, h, w]."""
        found = self.convolution(hidden_states).unflatten(0, (len(self.biases), -1))
        return (found + self.biases).flatten(0, 1)


def added_conditions(
    model: "LoadedModel", height: int, width: int, pooled: Tensor | None = None
) -> dict[str, Tensor] | None:
    """The further conditions of Stable Diffusion XL: pooled prompts [P, channels] and time ids [P, 6], float32.

    The ids are the picture's original size, the corner of its crop and its target size (SDXL paper, section 2.2):
    here those of a whole frame. `pooled`: in place of the model's own prompt, where P is 1. None for families without
    these conditions.
    """
    pooled = model.pooled_embedding if pooled is None else pooled
    if pooled is None:
        return None
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
    return {"text_embeds": pooled, "time_ids": time_ids.expand(len(pooled), -1)}


def fold_timestep(unet: Any, timestep: int, conditions: dict[str, Tensor] | None = None) -> None:
    """Make the timestep a constant: add each residual block's time projection to the bias of a convolution.

    `conditions`: see `added_conditions`; they are part of the time embedding. Where they are of several prompts, the
    U-Net takes the pictures of each prompt one after the other. The sum is computed in float32 and rounded once, to the
    type of the bias. Raises DiffSegError for blocks that use the time in another way.
    """
    sample = torch.zeros(1, 1)  # float32: diffusers reads its type and batch only
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
        shift = functional.linear(activated, projection.weight.float(), projection.bias.float())
        bias = block.conv1.bias
        biases = (bias.float() + shift).to(bias.dtype)
        if len(biases) == 1:
            block.conv1.bias = nn.Parameter(biases[0], requires_grad=False)
        else:
            block.conv1 = _BiasedByPrompt(block.conv1, biases)
        block.time_emb_proj = None
    unet.time_embedding, unet.time_embed_act = _NoTimeEmbedding(), None


def fixed_noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    """Noise float32 [1, channels, height, width] of a seed: the same for every frame and on every machine."""
    return torch.randn(1, channels, height, width, generator=torch.Generator("cpu").manual_seed(seed))


def noise_constants(model: "LoadedModel", timestep: int, noise: Tensor) -> tuple[float, Tensor]:
    """√ᾱ and √(1−ᾱ)·`noise` of a timestep, ᾱ from the model's own schedule: latent_t = √ᾱ·latent + √(1−ᾱ)·noise."""
    alpha = noise_scheduler(model).alphas_cumprod[timestep]
    return float(alpha.sqrt()), (1 - alpha).sqrt() * noise


def noise_scheduler(model: "LoadedModel") -> Any:
    """A scheduler with the model's noise schedule. Raises DiffSegError if the model has no schedule of betas.

    It is a DDIMScheduler, whatever the model's own is: the betas are the same, and `add_noise` keeps the variance.
    """
    from diffusers import DDIMScheduler

    config = model.schedule
    if config is None or "beta_schedule" not in config:
        raise DiffSegError(
            f"{model.source} has no noise schedule (scheduler/scheduler_config.json with a beta_schedule), which "
            "--noise-seed needs; export with --noise-seed none"
        )
    return DDIMScheduler.from_config(config)

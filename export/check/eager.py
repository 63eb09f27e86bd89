"""What PyTorch computes with an unchanged diffusers model, maps or features: the reference for every engine."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from export.graph.attention import MapCollector
from export.graph.conditioning import added_conditions, fixed_noise, noise_scheduler
from export.graph.features import find_feature_block
from export.model.families import BLOCKS

if TYPE_CHECKING:
    import numpy as np
    from diffusers.models.attention_processor import Attention
    from numpy.typing import NDArray

    from export.model.load import LoadedModel


class _RecordingProcessor:
    """diffusers' own attention arithmetic (`get_attention_scores`), which also records the probabilities."""

    def __init__(self, collector: MapCollector) -> None:
        self.collector = collector

    def __call__(
        self,
        attention: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        query = attention.head_to_batch_dim(attention.to_q(hidden_states))
        key = attention.head_to_batch_dim(attention.to_k(hidden_states))
        value = attention.head_to_batch_dim(attention.to_v(hidden_states))
        scores = attention.get_attention_scores(query, key, attention_mask)
        self.collector.add(scores.unflatten(0, (-1, attention.heads)))
        context = attention.batch_to_head_dim(scores @ value)
        return attention.to_out[1](attention.to_out[0](context))


def eager_pyramid(
    model: "LoadedModel",
    frame: "NDArray[np.uint8]",
    timestep: int,
    blocks: Sequence[str] = BLOCKS,
    *,
    noise_seed: int | None = None,
) -> list["NDArray[np.float32]"]:
    """Attention maps of frames uint8 [B, H, W, 3] BGR, computed by diffusers, finest first: float32 [B, n, n] each.

    Arguments are those of `eager_maps`.
    """
    maps = eager_maps(model, frame, timestep, blocks, noise_seed=noise_seed)
    return [level.cpu().numpy() for level in maps]


def eager_maps(
    model: "LoadedModel",
    frame: "NDArray[np.uint8]",
    timestep: int,
    blocks: Sequence[str] = BLOCKS,
    *,
    noise_seed: int | None = None,
) -> list[Tensor]:
    """Like `eager_pyramid`, but tensors on the device of the model's modules.

    `timestep`: of the one U-Net pass. `blocks`: of down, mid and up, those whose maps are averaged. `noise_seed`: of
    the noise added to the latent, None for no noise.
    Only the self-attention processors are replaced (they record); all else runs as in diffusers. The model must not
    have been rewritten by `export.graph.network.FrameToPyramid`.
    """
    collector = MapCollector(blocks)
    processors = model.unet.attn_processors
    model.unet.set_attn_processor(
        {
            name: _RecordingProcessor(collector) if ".attn1." in name and collector.wants(name) else processor
            for name, processor in processors.items()
        }
    )
    run_model(model, frame, timestep, noise_seed)
    model.unet.set_attn_processor(processors)
    maps = collector.take()
    return [torch.stack(maps[n]).mean(dim=0) for n in sorted(maps, reverse=True)]


def eager_features(
    model: "LoadedModel", frame: "NDArray[np.uint8]", timestep: int, *, noise_seed: int | None = None
) -> list["NDArray[np.float32]"]:
    """Features of frames uint8 [B, H, W, 3] BGR, computed by diffusers: one float32 [B, n, C].

    Nothing is replaced: a hook reads what the layer gives (`export.graph.features.find_feature_block`). The model must
    not have been rewritten. Other arguments are those of `eager_maps`.
    """
    kept: list[Tensor] = []
    layer = find_feature_block(model.unet, model.source).attn1
    hook = layer.register_forward_hook(lambda _layer, _inputs, output: kept.append(output))
    run_model(model, frame, timestep, noise_seed)
    hook.remove()
    return [kept[0].float().cpu().numpy()]


def run_model(
    model: "LoadedModel",
    frame: "NDArray[np.uint8]",
    timestep: int,
    noise_seed: int | None,
    prompt: Tensor | None = None,
    pooled: Tensor | None = None,
) -> None:
    """One pass of the model's own U-Net on frames uint8 [B, H, W, 3] BGR; see `eager_maps`.

    `prompt`: embedding [1, tokens, channels], and `pooled` [1, channels], in place of the model's own prompt.
    """
    embedding = model.prompt_embedding if prompt is None else prompt
    _, height, width, _ = frame.shape
    # torch needs positive strides, so the reversed view is copied.
    rgb = torch.from_numpy(frame[..., ::-1].copy()).permute(0, 3, 1, 2)
    device = model.vae.device
    image = rgb.to(device, model.vae.dtype) / 127.5 - 1
    with torch.no_grad():
        encoded = model.vae.encode(image)
        latent = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        latent = latent * model.vae.config.scaling_factor
        if noise_seed is not None:
            noise = fixed_noise(noise_seed, *latent.shape[1:]).to(latent)
            latent = noise_scheduler(model).add_noise(latent, noise, torch.tensor([timestep]))
        dtype = model.unet.dtype
        conditions = added_conditions(model, height, width, pooled) or {}
        model.unet(
            latent.to(dtype),
            timestep,
            encoder_hidden_states=embedding.to(device, dtype).expand(len(frame), -1, -1),
            added_cond_kwargs={name: value.to(device).expand(len(frame), -1) for name, value in conditions.items()},
        )

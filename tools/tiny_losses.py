"""What the tiny model is trained on: the autoencoder's and the denoiser's losses. No mask enters either."""

from __future__ import annotations

from typing import Any


def reconstruction_loss(output: Any, pictures: Any) -> Any:
    """What the decoder is held to, float32 [B, 3, H, W] both: pixels, colours of 8×8 blocks, strength of textures.

    Without the blocks' means and their chroma fine patterns take all of the latent and colour is lost; without
    the strengths a pattern too fine to be redrawn exactly leaves no trace in the latent.
    """
    from torch.nn.functional import avg_pool2d

    error = output - pictures
    means = avg_pool2d(error, 8)
    chroma = means[:, (0, 2)] - means[:, 1:2]
    texture = (texture_strength(output) - texture_strength(pictures)).abs().mean()
    return error.abs().mean() + error.square().mean() + 2 * means.abs().mean() + 2 * chroma.abs().mean() + 3 * texture


def texture_strength(pictures: Any) -> Any:
    """Root mean square slopes of the brightness around every 8×8 block: float32 [B, 8, H/8 - 1, W/8 - 1].

    Four directions at two scales, from pictures float32 [B, 3, H, W].
    """
    import torch
    from torch.nn.functional import avg_pool2d

    strengths = []
    grey = pictures.mean(1, keepdim=True)
    for window in (16, 8):
        centre = grey[..., 1:-1, 1:-1]
        for y, x in ((0, 1), (1, 0), (1, 1), (1, -1)):
            rows, columns = slice(1 + y, grey.shape[2] - 1 + y), slice(1 + x, grey.shape[3] - 1 + x)
            squares = torch.nn.functional.pad((grey[..., rows, columns] - centre).square(), (1, 1, 1, 1))
            strengths.append((avg_pool2d(squares, window, window // 2) + 1e-4).sqrt())
        grey = avg_pool2d(grey, 2)
    return torch.cat(strengths, 1)


def noise_levels(generator: Any, batch: int, side: int) -> tuple[Any, Any]:
    """Timesteps: what the U-Net is told, int64 [B], and what each token gets, int64 [B, side, side].

    Half of the pictures are evenly noised. In the others random blocks are noised much more than the rest: what
    was there can only be told from the remainder of the region, which is what attention is to learn.
    """
    import torch

    told = torch.randint(200, 900, (batch,), generator=generator)
    tokens = told[:, None, None].expand(batch, side, side).clone()
    for index in range(1, batch, 2):
        told[index] = torch.randint(50, 500, (1,), generator=generator)
        cell = int(torch.randint(1, 5, (1,), generator=generator))
        cells = -(-side // cell)
        part = 0.2 + 0.5 * torch.rand(1, generator=generator)
        heavy = torch.rand(cells, cells, generator=generator) < part
        heavy = heavy.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:side, :side]
        level = torch.randint(600, 1000, (1,), generator=generator)
        tokens[index] = torch.where(heavy, level, told[index])
    return told, tokens


def denoising_loss(unet: Any, clean: Any, prompt: Any, alphas: Any, generator: Any) -> Any:
    """v-prediction error of one batch ``clean`` float32 [B, C, s, s]; levels with little noise weigh less."""
    import torch

    told, tokens = noise_levels(generator, clean.shape[0], clean.shape[-1])
    alpha = alphas[tokens][:, None]
    noise = torch.randn(clean.shape, generator=generator)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    with torch.autocast("cpu", torch.bfloat16):
        noisy = noisy.to(memory_format=torch.channels_last)
        output = unet(noisy, told, prompt.expand(clean.shape[0], -1, -1)).sample.float()
    weight = (4 * (1 - alpha)).clamp(max=1)  # 1 / (1 - alpha) is the signal-to-noise ratio plus one
    return (weight * (output - target).square()).mean()

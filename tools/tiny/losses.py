"""Losses of the tiny model's autoencoder and denoiser. Neither uses a mask."""

from __future__ import annotations

from typing import Any


def reconstruction_loss(output: Any, pictures: Any) -> Any:
    """The decoder's loss, a scalar, from float32 [B, 3, H, W] each: pixels, and the colours of 8×8 blocks.

    Without the means and the chroma of blocks, fine patterns take the whole latent and colour is lost.
    """
    from torch.nn.functional import avg_pool2d

    error = output - pictures
    means = avg_pool2d(error, 8)
    chroma = means[:, (0, 2)] - means[:, 1:2]
    return error.abs().mean() + error.square().mean() + 2 * means.abs().mean() + 2 * chroma.abs().mean()


def block_statistics(pictures: Any) -> Any:
    """Colour and texture of every 8×8 block: float32 [B, 15, H/8, W/8] from pictures float32 [B, 3, H, W].

    Mean R, G, B; then the logarithm of the root mean square slope of the brightness, over 16×16 pixels, in four
    directions at three scales. While the autoencoder learns, a linear map (deleted afterwards) has to read them from
    its latents: otherwise a pattern too fine to be drawn again would leave no trace in the latent.
    """
    import torch
    from torch.nn.functional import avg_pool2d, pad

    grey = pictures.mean(1, keepdim=True)
    statistics = [2 * avg_pool2d(pictures, 8)]
    for window in (16, 8, 4):
        wide = pad(grey, (1, 1, 1, 1), mode="replicate")
        for y, x in ((0, 1), (1, 0), (1, 1), (1, -1)):
            rows, columns = slice(1 + y, 1 + y + grey.shape[2]), slice(1 + x, 1 + x + grey.shape[3])
            squares = (wide[..., rows, columns] - grey).square()
            energy = avg_pool2d(squares, window, window // 2, window // 4, count_include_pad=False)
            statistics.append(0.5 * (energy + 1e-3).log() + 2)
        grey = avg_pool2d(grey, 2)
    return torch.cat(statistics, 1)


def noise_levels(generator: Any, batch: int, side: int) -> tuple[Any, Any]:
    """Timesteps: the one the U-Net gets, int64 [B], and the one of the noise on each token, int64 [B, side, side].

    Half of the pictures have even noise. In the others random blocks have much more noise than the rest: their content
    can only be inferred from the remainder of the region, which attention is to learn.
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
    """v-prediction error of a batch `clean` float32 [B, C, s, s], a scalar; levels with little noise weigh less."""
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

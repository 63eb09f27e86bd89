"""`python -m tools.tiny train --photos DIR --output FOLDER`: trains the tiny model from nothing.

Three stages: autoencoder, latents of all pictures, U-Net. A stage is skipped when its result is already in
`<output>.work`. The U-Net stage continues from its last checkpoint and writes a diffusers folder every few minutes.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from runtime.errors import UsageError
from tools.tiny import data as tiny_data
from tools.tiny import losses as tiny_losses
from tools.tiny import model as tiny_model

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TrainRecipe:
    """Everything that determines the result, except the photographs."""

    seed: int = 0
    size: str = "tiny"  # a key of `tiny_model.UNET_CHANNELS`
    autoencoder_steps: int = 1600
    latent_noise: float = 0.2  # deviation, while the autoencoder learns
    scenes: tuple[int, int] = (4000, 8000)  # drawn at 256 and at 160 pixels
    texture_scenes: int = 2000  # at 256 pixels, all regions of one mean colour
    steps: int = 800  # more gained nothing before the attention is tuned (log in engines/README.md)
    batch: int = 32  # of 16×16 latents; a quarter of it when they are 32×32
    large_after: float = 0.7  # part of the steps after which whole views (32×32 latents) are trained on
    rate: float = 1e-3
    ema: float = 0.999


DEFAULT = TrainRecipe()


def train_autoencoder(
    recipe: TrainRecipe, photos: list[NDArray[np.uint8]], work: Path, start: Path | None, progress: Any
) -> Any:
    """Train an autoencoder to reconstruct pictures from noised latents of mean 0 and deviation 1.

    The noise makes the autoencoder use the latent for what its losses weigh most: the colours and textures of blocks,
    not the place of every stripe.

    `start`: the folder of an autoencoder to continue with; None: random weights.
    Returns the frozen `AutoencoderKL` in evaluation mode; its scaling factor is 1 / deviation.
    """
    import torch
    from diffusers import AutoencoderKL

    folder = work / "vae"
    if folder.exists():
        return AutoencoderKL.from_pretrained(folder).eval().requires_grad_(False)
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng([recipe.seed, 1])
    scenes = tiny_data.draw_scenes(recipe.scenes[1], tiny_data.SIDES["scenes"][1], 1_000_000, work)
    vae = AutoencoderKL.from_pretrained(start) if start else tiny_model.build_autoencoder(recipe.size)
    vae = vae.train().to(memory_format=torch.channels_last)
    highest = 2e-3
    probe = torch.nn.Conv2d(tiny_model.LATENT_CHANNELS, 15, 1)
    parameters = [*vae.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, highest, betas=(0.9, 0.99), weight_decay=1e-3)
    steps = recipe.autoencoder_steps
    task = progress.add_task("autoencoder", total=steps)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = highest * _schedule(step, steps, 50)
        # Larger crops at the end: the group norms then see the same statistics as in use.
        side, batch = (64, 16) if step < 0.75 * steps else (128, 4)
        pictures = tiny_data.normalise(tiny_data.crops(rng, photos, scenes, side, batch))
        pictures = pictures.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(pictures).latent_dist.mean
            noisy = mean + recipe.latent_noise * torch.randn_like(mean)
            # The decoder costs most and no engine contains it: a quarter of the batch is enough.
            few = max(1, batch // 4)
            output = vae.decode(noisy[:few]).sample.float()
        mean = mean.float()
        asked = (probe(noisy.float()) - tiny_losses.block_statistics(pictures)).abs().mean()
        spread = mean.std((0, 2, 3)).sub(1).square().mean() + mean.mean((0, 2, 3)).square().mean()
        loss = tiny_losses.reconstruction_loss(output, pictures[:few]) + 4 * asked + 0.05 * spread
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 0:
            _log(work, stage="autoencoder", step=step, loss=round(loss.item(), 4), asked=round(asked.item(), 4))
        progress.update(task, advance=1, description=f"autoencoder {loss.item():.3f}")
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        sample = tiny_data.normalise(tiny_data.crops(rng, photos, scenes, 128, 64))
        deviation = float(vae.encode(sample).latent_dist.mean.std())
    vae.register_to_config(scaling_factor=round(1 / deviation, 5))
    vae.save_pretrained(work / "vae.new")
    os.replace(work / "vae.new", folder)
    return vae


def encode_all(
    recipe: TrainRecipe, vae: Any, photos: list[NDArray[np.uint8]], work: Path, progress: Any
) -> dict[str, NDArray[np.float16]]:
    """The scaled latents of all pictures, computed once: name → float16 [N, C, side/8, side/8]."""
    import torch

    result = {}
    for name, (count, picture) in tiny_data.view_sets(
        photos, work, recipe.scenes, recipe.texture_scenes, recipe.seed
    ).items():
        path = work / f"latents_{name}.npy"
        if not path.exists():
            task = progress.add_task(f"latents of {name}", total=count)
            parts = []
            for start in range(0, count, 16):
                pictures = np.stack([picture(i) for i in range(start, min(start + 16, count))])
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    batch = tiny_data.normalise(pictures).to(memory_format=torch.channels_last)
                    mean = vae.encode(batch).latent_dist.mean.float() * vae.config.scaling_factor
                parts.append(mean.contiguous().numpy().astype(np.float16))
                progress.update(task, advance=len(pictures))
            with path.with_suffix(".new").open("wb") as file:
                np.save(file, np.concatenate(parts))
            os.replace(path.with_suffix(".new"), path)
        result[name] = np.load(path)
    return result


def train_unet(
    recipe: TrainRecipe,
    vae: Any,
    latents: dict[str, NDArray[np.float16]],
    output: Path,
    minutes: float | None,
    every: float,
    progress: Any,
) -> None:
    """Train for `recipe.steps` or `minutes`, whichever ends first; write `output` every `every` minutes."""
    import torch
    from diffusers.models.attention_processor import AttnProcessor

    work = _work_folder(output)
    torch.manual_seed(recipe.seed)
    text_encoder = tiny_model.build_text_encoder()
    tokenizer = tiny_model.build_tokenizer(work / "tokenizer")
    prompt = tiny_model.empty_prompt(text_encoder, tokenizer)
    unet, average = (tiny_model.build_unet(recipe.size) for _ in range(2))
    average.load_state_dict(unet.state_dict())
    unet = unet.to(memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())  # faster on CPUs than the fused one at these sizes
    optimizer = torch.optim.AdamW(unet.parameters(), recipe.rate, betas=(0.9, 0.99), weight_decay=0.01)
    alphas = tiny_model.build_scheduler().alphas_cumprod
    first = 0
    checkpoint = work / "unet.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        unet.load_state_dict(state["unet"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + first)
    rng = np.random.default_rng([recipe.seed, 2, first])
    small, batch = 16, recipe.batch
    streams = {
        small: tiny_data.latent_batches(rng, latents, small, batch),
        32: tiny_data.latent_batches(rng, latents, 32, max(2, batch // 4)),
    }

    def save(step: int) -> None:
        state = {
            "unet": unet.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
        }
        torch.save(state, checkpoint.with_suffix(".new"))
        os.replace(checkpoint.with_suffix(".new"), checkpoint)
        tiny_model.save_pipeline(output, vae, average, text_encoder, tokenizer)
        _log(work, stage="snapshot", step=step)

    started = saved = time.monotonic()
    task = progress.add_task("unet", total=recipe.steps, completed=first)
    losses: list[float] = []
    step = first
    while step < recipe.steps and (minutes is None or time.monotonic() - started < minutes * 60):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * _schedule(step, recipe.steps, 200)
        side = 32 if step >= recipe.large_after * recipe.steps else small
        clean = torch.from_numpy(next(streams[side]))
        loss = tiny_losses.denoising_loss(unet, clean, prompt, alphas, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            keep = min(recipe.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - keep)
        losses.append(loss.item())
        if step % 100 == 0:
            _log(work, stage="unet", step=step, side=side, loss=round(float(np.mean(losses[-100:])), 4))
        progress.update(task, completed=step, description=f"unet {np.mean(losses[-100:]):.3f}")
        if time.monotonic() - saved > every * 60:
            save(step)
            saved = time.monotonic()
    save(step)


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the highest learning rate: a linear warm-up, then half a cosine down to 2 %."""
    rest = 0.02 + 0.49 * (1 + np.cos(np.pi * min(1.0, step / max(1, steps))))
    return float(min(1.0, (step + 1) / warmup) * rest)


def _work_folder(output: Path) -> Path:
    return output.with_name(output.name + ".work")


def _log(work: Path, **fields: object) -> None:
    with (work / "log.jsonl").open("a") as file:
        file.write(json.dumps({"time": round(time.time()), **fields}) + "\n")


def train(
    photos: Annotated[Path, typer.Option(help="Folder of photographs, searched with all its subfolders.")],
    output: Annotated[Path, typer.Option(help="Diffusers folder to write; intermediate results go to OUTPUT.work.")],
    minutes: Annotated[float | None, typer.Option(help="Stop the U-Net stage after this time.")] = None,
    steps: Annotated[int, typer.Option(help="U-Net steps of the whole schedule.")] = DEFAULT.steps,
    autoencoder_steps: Annotated[int, typer.Option(help="Steps of the autoencoder.")] = DEFAULT.autoencoder_steps,
    autoencoder: Annotated[Path | None, typer.Option(help="Continue with this folder's autoencoder.")] = None,
    scenes: Annotated[tuple[int, int], typer.Option(help="Scenes at 256 and at 160 pixels.")] = DEFAULT.scenes,
    texture_scenes: Annotated[int, typer.Option(help="Scenes of one mean colour.")] = DEFAULT.texture_scenes,
    batch: Annotated[int, typer.Option(help="Pictures per step, as 16×16 latents.")] = DEFAULT.batch,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = DEFAULT.rate,
    large_after: Annotated[float, typer.Option(help="Part of the steps on small crops.")] = DEFAULT.large_after,
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = DEFAULT.seed,
    size: Annotated[str, typer.Option(help="tiny, or test (for smoke tests).")] = DEFAULT.size,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    snapshot_every: Annotated[float, typer.Option(help="Minutes between snapshots.")] = 4.0,
) -> None:
    """Train the tiny model from nothing. Run it again to continue after an interruption."""
    if size not in tiny_model.UNET_CHANNELS:
        raise UsageError(f"--size: expected one of {', '.join(tiny_model.UNET_CHANNELS)}, found {size}")
    if autoencoder is not None and not (autoencoder / "config.json").is_file():
        raise UsageError(f"--autoencoder: expected a folder with config.json and weights, found {autoencoder}")
    pictures = tiny_data.load_photos(photos)
    import torch
    from rich.console import Console
    from rich.progress import Progress

    torch.set_num_threads(threads)
    recipe = TrainRecipe(
        seed=seed,
        size=size,
        autoencoder_steps=autoencoder_steps,
        scenes=scenes,
        texture_scenes=texture_scenes,
        steps=steps,
        batch=batch,
        large_after=large_after,
        rate=rate,
    )
    work = _work_folder(output)
    work.mkdir(parents=True, exist_ok=True)
    _log(work, stage="start", recipe=str(recipe))
    with Progress(console=Console(stderr=True)) as progress:
        vae = train_autoencoder(recipe, pictures, work, autoencoder, progress)
        latents = encode_all(recipe, vae, pictures, work, progress)
        train_unet(recipe, vae, latents, output, minutes, snapshot_every, progress)

"""`python -m tools.tiny tune MODEL --photos DIR --output FOLDER`: trains the tiny model's attention.

MODEL is the folder that `train` wrote. Two stages: segmentations of the photographs (`tools.tiny.teacher`), then
encoder and U-Net together, on frames as the engine gets them. Each stage continues where it was interrupted.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tools.tiny import attention as tiny_attention
from tools.tiny import data as tiny_data
from tools.tiny import losses as tiny_losses
from tools.tiny import model as tiny_model
from tools.tiny.pictures import Pictures, TuneRecipe, segment_photos

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT = TuneRecipe()
AHEAD = 6  # batches that wait for their step


class Tuner:
    """Encoder and U-Net in training. Small losses keep the autoencoder drawing and the U-Net denoising."""

    def __init__(self, recipe: TuneRecipe, model: Path) -> None:
        """`model`: a diffusers folder that `tools.tiny.train` wrote."""
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        self.recipe = recipe
        self.vae = AutoencoderKL.from_pretrained(model / "vae").train().to(memory_format=torch.channels_last)
        self.unet = UNet2DConditionModel.from_pretrained(model / "unet").train().to(memory_format=torch.channels_last)
        self.text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder")
        self.tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
        self.prompt = tiny_model.empty_prompt(self.text_encoder, self.tokenizer).detach()
        self.alphas = tiny_model.build_scheduler().alphas_cumprod
        self.maps = tiny_attention.KeepMaps()
        self.unet.set_attn_processor(self.maps)
        self.parameters = [*self.unet.parameters(), *self.vae.parameters()]
        self.average = [p.detach().clone() for p in self.parameters]
        groups: list[dict[str, Any]] = [
            {"params": list(self.unet.parameters())},
            {"params": list(self.vae.parameters()), "part": 0.5},
        ]
        self.optimizer = torch.optim.AdamW(groups, recipe.rate, betas=(0.9, 0.98), weight_decay=0.02)
        self.step = 0

    def train_on(self, pictures: NDArray[np.uint8], targets: NDArray[np.float32]) -> dict[str, float]:
        """Take one step on pictures uint8 [B, s, s, 3] and targets float32 [B, n, n]; return the losses by name."""
        import torch

        tokens = pictures.shape[1] // 8
        pairs = self.step % 4 == 1
        if pairs:
            pictures, targets = _with_mirror_images(pictures, targets)
        frames = tiny_data.normalise(pictures).to(memory_format=torch.channels_last)
        scaling = self.vae.config.scaling_factor
        rows = torch.randperm(tokens**2)[:256].sort().values
        timesteps, alpha = torch.full((len(frames),), 300), torch.ones(len(frames), 1, 1, 1)
        # Frames have no noise in use. In every second step the first frame has some, which the U-Net learns to remove.
        denoise, draw = self.step % 2 == 0, self.step % 4 == 0
        if denoise:
            timesteps[0] = int(torch.randint(20, 700, (1,)))
            alpha[0] = self.alphas[timesteps[0]]
        with torch.autocast("cpu", torch.bfloat16):
            mean = self.vae.encode(frames).latent_dist.mean
            if draw:
                y, x = (int(v) for v in torch.randint(0, tokens - 7, (2,)))
                drawn = self.vae.decode(mean[:1, :, y : y + 8, x : x + 8]).sample.float()
            latents = mean.float() * scaling
            noise = torch.randn_like(latents)
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
            noisy = noisy.to(memory_format=torch.channels_last)
            output = self.unet(noisy, timesteps, self.prompt.expand(len(frames), -1, -1)).sample.float()
        pyramid = self.maps.take()
        whole, each, merge = tiny_attention.attention_loss(pyramid, torch.from_numpy(targets), rows)
        weight = torch.ones(len(frames))
        weight[0] = 0.3 if denoise else 1.0
        spread = latents.std((0, 2, 3)).sub(1).square().mean() + latents.mean((0, 2, 3)).square().mean()
        loss = ((whole + 0.15 * each + 2 * merge) * weight).mean() + 0.02 * spread
        losses = {"attention": whole[1:].mean().item(), "merge": merge[1:].mean().item(), "spread": spread.item()}
        if pairs:
            mirror = tiny_attention.mirror_loss(pyramid, rows)
            loss = loss + 10 * mirror
            losses["mirror"] = mirror.item()
        if draw:
            piece = frames[:1, :, 8 * y : 8 * y + 64, 8 * x : 8 * x + 64]
            reconstruction = tiny_losses.reconstruction_loss(drawn, piece)
            loss = loss + 0.3 * reconstruction
            losses["reconstruction"] = reconstruction.item()
        if denoise:
            velocity = (alpha.sqrt() * noise - (1 - alpha).sqrt() * latents)[:1].detach()
            error = (output[:1] - velocity).square().mean()
            loss = loss + 0.15 * error
            losses["denoising"] = error.item()
        self._update(loss)
        return losses

    def _update(self, loss: Any) -> None:
        import torch

        done = min(1.0, self.step / self.recipe.steps)
        rate = self.recipe.rate * min(1.0, (self.step + 1) / 100) * (0.03 + 0.485 * (1 + np.cos(np.pi * done)))
        for group in self.optimizer.param_groups:
            group["lr"] = float(rate * group.get("part", 1.0))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)

    def save(self, output: Path, checkpoint: Path) -> None:
        """Write the state to `checkpoint` and the averaged weights, as a pipeline, to `output`."""
        import torch

        state = {
            "unet": self.unet.state_dict(),
            "vae": self.vae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
        }
        torch.save(state, checkpoint.with_suffix(".new"))
        os.replace(checkpoint.with_suffix(".new"), checkpoint)
        current = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
            tiny_model.save_pipeline(output, self.vae, self.unet, self.text_encoder, self.tokenizer)
            torch._foreach_copy_(self.parameters, current)

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint that `save` wrote."""
        import torch

        state = torch.load(checkpoint, weights_only=True)
        self.unet.load_state_dict(state["unet"])
        self.vae.load_state_dict(state["vae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]


def _with_mirror_images(
    pictures: NDArray[np.uint8], targets: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The first half of a batch, followed by its mirror images with their targets."""
    count, tokens = len(pictures) // 2, pictures.shape[1] // 8
    places = np.arange(tokens**2).reshape(tokens, tokens)[:, ::-1].ravel()
    pictures, targets = pictures[:count], targets[:count]
    mirrored = pictures[:, :, ::-1], targets[:, places][:, :, places]
    return np.concatenate([pictures, mirrored[0]]), np.concatenate([targets, mirrored[1]])


def run_schedule(tuner: Tuner, segmented: Path, work: Path, output: Path, minutes: float | None, progress: Any) -> None:
    """Train until the schedule or `minutes` are over; write `output` every four minutes and at the end.

    `segmented`: the folder of the views and their segmentations; `work`: that of the state and the log.
    """
    recipe = tuner.recipe
    checkpoint = work / "tuned.pt"
    if checkpoint.exists():
        tuner.load(checkpoint)
    first = tuner.step
    pictures = Pictures(recipe, segmented, first)

    def draw(step: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        whole = step >= recipe.whole_after * recipe.steps
        tokens, batch = (32, max(2, recipe.batch // 2)) if whole else (24, recipe.batch)
        samples = [pictures.sample(tokens) for _ in range(batch)]
        return np.stack([s[0] for s in samples]), np.stack([s[1] for s in samples])

    feeder = ThreadPoolExecutor(1)  # one thread, so that pictures are drawn in the order of the steps
    batches = deque(feeder.submit(draw, step) for step in range(first, min(first + AHEAD, recipe.steps)))
    started = saved = time.monotonic()
    task = progress.add_task("attention", total=recipe.steps, completed=first)
    try:
        while tuner.step < recipe.steps and (minutes is None or time.monotonic() - started < minutes * 60):
            batch = batches.popleft().result()
            if tuner.step + AHEAD < recipe.steps:
                batches.append(feeder.submit(draw, tuner.step + AHEAD))
            losses = tuner.train_on(*batch)
            progress.update(task, completed=tuner.step, description=f"attention {losses['attention']:.3f}")
            if tuner.step % 50 == 0:
                with (work / "log.jsonl").open("a") as file:
                    file.write(json.dumps({"step": tuner.step, **{k: round(v, 4) for k, v in losses.items()}}) + "\n")
            if time.monotonic() - saved > 240:
                tuner.save(output, checkpoint)
                saved = time.monotonic()
    finally:
        feeder.shutdown(cancel_futures=True)
    tuner.save(output, checkpoint)


def tune(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Diffusers folder that train wrote.")],
    photos: Annotated[Path, typer.Option(help="Folder of photographs, searched with all its subfolders.")],
    output: Annotated[Path, typer.Option(help="Diffusers folder to write; intermediate results go to OUTPUT.work.")],
    minutes: Annotated[float | None, typer.Option(help="Stop after this time.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the whole schedule.")] = DEFAULT.steps,
    views: Annotated[int, typer.Option(help="Views of photographs to segment before training.")] = DEFAULT.views,
    batch: Annotated[int, typer.Option(min=2, help="Pictures per step.")] = DEFAULT.batch,
    whole_after: Annotated[float, typer.Option(help="Part of the schedule on crops, 0 to 1.")] = DEFAULT.whole_after,
    rate: Annotated[
        float, typer.Option(min=1e-7, max=0.01, help="Learning rate at its highest; lower for a model that was tuned.")
    ] = DEFAULT.rate,
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = DEFAULT.seed,
    threads: Annotated[int, typer.Option(help="CPU threads; processes that segment.")] = 1,
    views_of: Annotated[
        Path | None, typer.Option(help="OUTPUT of an earlier tuning, whose segmented views are taken.")
    ] = None,
) -> None:
    """Tune the attention of a trained model. Run it again to continue after an interruption."""
    tiny_model.check_pipeline(model)
    pictures = tiny_data.load_photos(photos)
    import torch
    from rich.console import Console
    from rich.progress import Progress

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    recipe = TuneRecipe(seed=seed, views=views, steps=steps, batch=batch, whole_after=whole_after, rate=rate)
    work, segmented = (folder.with_name(folder.name + ".work") for folder in (output, views_of or output))
    for folder in (work, segmented):
        folder.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True)) as progress:
        segment_photos(recipe, pictures, segmented, progress, threads)
        run_schedule(Tuner(recipe, model), segmented, work, output, minutes, progress)

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("diffusers")

from runtime.errors import DiffSegError
from tools.tiny import data as tiny_data
from tools.tiny import losses as tiny_losses
from tools.tiny.__main__ import app
from tools.tiny.train import TrainRecipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index, shape in enumerate([(200, 260, 3), (240, 192, 3)]):
        cv2.imwrite(str(folder / f"{index}.jpg"), rng.integers(0, 255, shape).astype(np.uint8))
    return folder


def train(photos, output, *more):
    few = ["--size", "test", "--steps", "3", "--autoencoder-steps", "2", "--scenes", "3", "3"]
    few += ["--texture-scenes", "2", "--batch", "4", "--large-after", "0.6"]
    return CliRunner().invoke(app, ["train", "--photos", str(photos), "--output", str(output), *few, *more])


def test_a_run_without_options_is_the_one_that_the_card_measures():
    card = (Path(__file__).parents[3] / "engines/README.md").read_text()
    assert f"by the commands above, {TrainRecipe().steps:,} steps of `train`" in card


@pytest.mark.slow
def test_training_leaves_a_pipeline_and_goes_on(photos, tmp_path):
    import torch
    from diffusers import StableDiffusionPipeline

    output = tmp_path / "model"
    result = train(photos, output, "--minutes", "0")
    assert result.exit_code == 0, result.output
    steps = [json.loads(line) for line in (tmp_path / "model.work" / "log.jsonl").read_text().splitlines()]
    assert steps[-1]["stage"] == "snapshot" and steps[-1]["step"] == 0
    before = torch.load(tmp_path / "model.work" / "unet.pt", weights_only=True)

    result = train(photos, output)
    assert result.exit_code == 0, result.output
    after = torch.load(tmp_path / "model.work" / "unet.pt", weights_only=True)
    assert after["step"] == 3
    assert any(not torch.equal(before["average"][k], after["average"][k]) for k in after["average"])

    pipeline = StableDiffusionPipeline.from_pretrained(output)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    latent = pipeline.vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean
    assert latent.shape == (1, 8, 8, 8) and torch.isfinite(latent).all()
    prompt = pipeline.encode_prompt("", "cpu", 1, False)[0]
    output = pipeline.unet(latent, 300, encoder_hidden_states=prompt).sample
    assert output.shape == latent.shape and torch.isfinite(output).all()


def test_no_photographs_is_said(tmp_path):
    with pytest.raises(DiffSegError, match="--photos"):
        tiny_data.load_photos(tmp_path)


def test_noise_levels_reach_every_token():
    import torch

    told, tokens = tiny_losses.noise_levels(torch.Generator().manual_seed(0), 64, 16)
    assert told.shape == (64,) and tokens.shape == (64, 16, 16)
    assert tokens.min() >= 50 and tokens.max() < 1000
    assert (tokens[0] == told[0]).all()  # even pictures: one level
    mixed = (tokens[1::2] != told[1::2, None, None]).float().mean()
    assert 0.2 < mixed < 0.7


def test_block_statistics_tell_patterns_of_one_mean_apart():
    import torch

    flat = torch.zeros(1, 3, 64, 64)
    stripes = torch.where(torch.arange(64) % 4 < 2, 0.5, -0.5).expand(1, 3, 64, 64)
    plain, upright, lying = (tiny_losses.block_statistics(x) for x in (flat, stripes, stripes.mT))
    assert upright.shape == (1, 15, 8, 8)
    assert torch.allclose(plain[:, :3], upright[:, :3])  # one mean
    assert (upright[:, 3] - plain[:, 3]).min() > 2 and torch.allclose(upright[:, 4], plain[:, 4])  # along x only
    assert torch.allclose(upright[:, 3], lying[:, 4].mT, atol=1e-5)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) / 4
    assert tiny_losses.reconstruction_loss(noise, noise) == 0
    assert tiny_losses.reconstruction_loss(flat, noise) > tiny_losses.reconstruction_loss(0.5 * noise, noise)

import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("diffusers")

import torch

from runtime.merge.aggregate import aggregate_attention
from tools.scenes import noise as noise_scenes
from tools.tiny import attention as tiny_attention
from tools.tiny import model as tiny_model
from tools.tiny import pictures as tiny_pictures
from tools.tiny import teacher as tiny_teacher
from tools.tiny.__main__ import app


def test_teacher_keeps_a_disc_together_and_apart_from_its_ground():
    picture = np.full((64, 64, 3), (40, 90, 160), np.uint8)
    cv2.circle(picture, (32, 32), 18, (200, 180, 30), -1)
    labels = tiny_teacher.teach(picture)
    assert labels.shape == (tiny_teacher.MEMBERS, 16, 16)
    target = tiny_teacher.target(labels, np.random.default_rng(0))
    assert target.shape == (64, 64) and np.allclose(target.sum(1), 1, atol=1e-5)
    centre, corner = 3 * 8 + 3, 0
    assert target[centre, centre] > 100 * target[centre, corner]
    assert target[corner, 63] > 100 * target[corner, centre]  # one ground on all sides


def test_rows_of_the_aggregate_are_the_runtimes():
    rng = np.random.default_rng(0)
    pyramid = [rng.random((2, s * s, s * s), np.float32) ** 4 for s in (8, 4, 2, 1)]
    pyramid = [maps / maps.sum(-1, keepdims=True) for maps in pyramid]
    rows = torch.tensor([0, 5, 17, 42, 63])
    found = tiny_attention.aggregate_rows([torch.from_numpy(maps) for maps in pyramid], rows)
    expected = aggregate_attention([maps[1] for maps in pyramid])
    assert np.allclose(found[1].numpy(), expected[rows.numpy()], rtol=1e-5, atol=1e-8)


def test_loss_is_least_for_the_target_itself():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 64, 64, generator=generator) ** 6
    target /= target.sum(-1, keepdim=True)
    pyramid = [target] + [tiny_attention.coarser(target, ratio) for ratio in (2, 4, 8)]
    assert all(torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-5) for maps in pyramid)
    rows = torch.arange(64)
    whole, each, _merge = tiny_attention.attention_loss(pyramid, target, rows)
    assert each.abs().max() < 1e-5
    wrong = [maps.flip(-1) for maps in pyramid]
    worse, worse_each, _merge = tiny_attention.attention_loss(wrong, target, rows)
    assert (worse > 1.2 * whole).all() and (worse_each > 0.1).all()


def test_mirror_loss_is_nothing_for_mirrored_maps():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(1, 64, 64, generator=generator) ** 4
    maps /= maps.sum(-1, keepdim=True)
    places = torch.arange(64).view(8, 8).flip(-1).flatten()
    rows = torch.tensor([0, 5, 17, 42, 63])

    def loss(other: torch.Tensor) -> float:
        both = torch.cat([maps, other])
        return tiny_attention.mirror_loss([both, tiny_attention.coarser(both, 2)], rows).item()

    assert abs(loss(maps[:, places][:, :, places])) < 1e-6
    assert loss(maps) > 0.1


def test_merge_loss_wants_one_region_near_and_two_far():
    regions = torch.arange(16) // 8
    target = (regions[:, None] == regions[None]).float()[None] + 1e-4
    target /= target.sum(-1, keepdim=True)
    sharp, flat = tiny_attention.merge_loss(target, target), tiny_attention.merge_loss(target * 0 + 1 / 16, target)
    each_its_own = torch.eye(16)[None] + 1e-4
    assert sharp < 0.02 < 0.5 < min(flat, tiny_attention.merge_loss(each_its_own / each_its_own.sum(-1, True), target))
    expected = symmetric_kl(target[0].numpy())
    assert np.allclose(tiny_attention.distances(target)[0].numpy(), np.maximum(expected, 1e-3), atol=1e-4)


def symmetric_kl(rows):
    return np.array([[0.5 * ((a - b) * np.log(a / b)).sum() for b in rows] for a in rows])


def test_kept_maps_leave_the_output_alone():
    from diffusers.models.attention_processor import AttnProcessor

    torch.manual_seed(0)
    unet = tiny_model.build_unet("test").eval()
    latent, prompt = torch.randn(1, 8, 16, 16), torch.randn(1, 4, tiny_model.TEXT_WIDTH)
    with torch.no_grad():
        unet.set_attn_processor(AttnProcessor())
        expected = unet(latent, 300, prompt).sample
        keeper = tiny_attention.KeepMaps()
        unet.set_attn_processor(keeper)
        found = unet(latent, 300, prompt).sample
    assert torch.allclose(found, expected, atol=1e-5)
    pyramid = keeper.take()
    assert [maps.shape[-1] for maps in pyramid] == [256, 64, 16, 4] and keeper.take() == []


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = tiny_model.build_tokenizer(folder / "tokenizer")
    parts = tiny_model.build_autoencoder("test"), tiny_model.build_unet("test"), tiny_model.build_text_encoder()
    tiny_model.save_pipeline(folder / "model", *parts, tokenizer)
    return folder / "model"


def test_noise_scenes_have_the_grain_and_the_masks_they_say():
    rng = np.random.default_rng(0)
    rough, smooth = (noise_scenes.noise_field(rng, 64, power, 1.0, 0.0) for power in (0.3, 1.8))
    step = [np.abs(np.diff(field, axis=1)).mean() for field in (rough, smooth)]
    assert step[0] > 2 * step[1] and abs(rough.std() - 1) < 0.01
    scene = noise_scenes.draw_noise_scene(rng, 64)
    assert scene.frame.shape == (64, 64, 3) and scene.mask.shape == (64, 64) and scene.mask.max() > 0


def test_pictures_and_targets_fit_each_other(tmp_path):
    """Seen from the target, every drawn region is one: turned, cut and pasted alike."""
    recipe = tiny_pictures.TuneRecipe(views=2)
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 3, (4, 4)).repeat(16, 0).repeat(16, 1)
    view = np.array([(20, 20, 20), (120, 120, 120), (230, 230, 230)], np.uint8)[cells].repeat(4, 0).repeat(4, 1)
    np.save(tmp_path / "views_2.npy", np.stack([view, view]))
    np.save(
        tmp_path / "labels_2.npy", np.stack([cells, cells])[:, None].repeat(tiny_teacher.MEMBERS, 1).astype(np.uint16)
    )
    pictures = tiny_pictures.Pictures(recipe, tmp_path, 0)
    for _ in range(12):
        picture, labels = pictures._picture()
        if len(labels) == tiny_teacher.MEMBERS:  # photographs, alone or pasted together
            seen = picture[2::4, 2::4, 0]
            for label in np.unique(labels[0]):
                assert len(np.unique(seen[labels[0] == label])) == 1
        picture, target = pictures.sample(24)
        assert picture.shape == (192, 192, 3) and target.shape == (576, 576)


@pytest.mark.slow
def test_tuning_moves_the_weights_and_goes_on(model, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    cv2.imwrite(str(photos / "a.png"), cv2.resize(rng.integers(0, 255, (6, 6, 3)).astype(np.uint8), (96, 96)))
    output = tmp_path / "tuned"
    few = ["tune", str(model), "--photos", str(photos), "--output", str(output), "--views", "2", "--batch", "2"]
    for minutes, steps in (("0", 0), ("9", 3)):
        result = CliRunner().invoke(app, [*few, "--steps", "3", "--minutes", minutes, "--whole-after", "0.4"])
        assert result.exit_code == 0, result.output
        state = torch.load(tmp_path / "tuned.work" / "tuned.pt", weights_only=True)
        assert state["step"] == steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_pictures.Pictures, "sample", lambda *_: 1 / 0)
        result = CliRunner().invoke(app, [*few, "--steps", "4"])
        assert isinstance(result.exception, ZeroDivisionError)  # and no training that waits for ever
    labels = np.load(tmp_path / "tuned.work" / "labels_2.npy")
    np.save(tmp_path / "tuned.work" / "labels_2.npy", labels[:, :22])
    result = CliRunner().invoke(app, [*few, "--steps", "4"])
    assert result.exit_code == 1 and "found 22: another version" in " ".join(result.output.split())
    from diffusers import UNet2DConditionModel

    before, after = (UNet2DConditionModel.from_pretrained(folder / "unet") for folder in (model, output))
    assert not torch.equal(before.conv_in.weight, after.conv_in.weight)
    assert CliRunner().invoke(app, ["mean", str(model), str(output), "--output", str(tmp_path / "mean")]).exit_code == 0
    between = UNet2DConditionModel.from_pretrained(tmp_path / "mean" / "unet")
    assert torch.allclose(between.conv_in.weight, (before.conv_in.weight + after.conv_in.weight) / 2)
    assert CliRunner().invoke(app, ["mean", str(photos), str(output), "--output", str(tmp_path / "no")]).exit_code != 0
    assert json.loads((output / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"

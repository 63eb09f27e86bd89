"""The rewritten network gives what diffusers gives, for every family; the yardstick sees every mistake."""

import numpy as np
import pytest
import torch

from export.check.eager import eager_pyramid
from export.check.maps import BOUND, Reference, compare_maps, mean_divergence, random_frame
from export.graph.network import FrameToPyramid, pyramid_levels
from export.model.families import BLOCKS
from export.model.load import load_model
from runtime import DiffSegError
from runtime.engine.inputs import FRAME_INPUTS
from runtime.engine.spec import EngineSpec, Level
from tools.tiny.random_pipelines import save_random_pipeline

FRAMES = np.stack([random_frame(128, 192, seed) for seed in (0, 1)])
TOP = (Level(16, 24, 3), Level(8, 12, 3))
PYRAMIDS = {
    "small": (*TOP, Level(4, 6, 3), Level(2, 3, 1)),
    "small-sd2": (*TOP, Level(4, 6, 3), Level(2, 3, 1)),
    "small-bk": (*TOP, Level(4, 6, 3)),
    "small-tiny-sd": (*TOP, Level(4, 6, 3)),
    "small-sdxl": (Level(8, 12, 3), Level(4, 6, 8)),
}


QUICK = ("small", "small-sdxl")


@pytest.fixture(
    scope="module", params=[one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in PYRAMIDS]
)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family, tmp_path_factory):
    return str(save_random_pipeline(tmp_path_factory.mktemp(family) / family, family))


@pytest.fixture(scope="module")
def expected(model):
    return eager_pyramid(load_model(model), FRAMES, 300)


def network_of(model, timestep=300, prompt="", change=None, **options):
    loading = {name: options.pop(name) for name in ("vae", "precision") if name in options}
    pipeline = load_model(model, prompt, **loading)
    if change:
        change(pipeline)
    return FrameToPyramid(pipeline, timestep, size=FRAMES.shape[1:3], **options).eval()


def rewritten(model, *args, **options):
    with torch.no_grad():
        return [maps.numpy() for maps in network_of(model, *args, **options)(torch.from_numpy(FRAMES))]


def checks(found, expected, **spec):
    levels = tuple(Level(1, maps.shape[-1], 1) for maps in expected)
    described = {"precision": "fp32", "storage": "fp32"} | spec
    return compare_maps(
        EngineSpec("x", None, "attention", 128, 192, None, levels, 300, "", **described, latent_scaling=1.0,
                   blocks=BLOCKS, thresholds=(1.1,)), found, Reference(FRAMES, expected)
    )  # fmt: skip


@pytest.mark.slow
def test_levels_follow_a_frame_that_is_not_square(model, family):
    assert pyramid_levels(network_of(model), 128, 192) == PYRAMIDS[family]


def test_network_equals_diffusers(model, expected):
    found = rewritten(model)
    for check in checks(found, expected):
        assert check.passed and check.divergence < 1e-7, check


def test_random_maps_are_far_from_uniform(expected):
    divergences = [mean_divergence(np.full_like(maps, 1 / maps.shape[-1]), maps) for maps in expected[:2]]
    assert np.mean(divergences) > 0.5


def swap_blocks(pipeline):
    """Two layers of one resolution change places."""
    blocks = next(block.attentions for block in reversed(pipeline.unet.up_blocks) if hasattr(block, "attentions"))
    blocks[0], blocks[1] = blocks[1], blocks[0]


def wrong_scaling(pipeline):
    pipeline.vae.register_to_config(scaling_factor=pipeline.vae.config.scaling_factor * 1.1)


@pytest.mark.parametrize(
    "mistake",
    [{"timestep": 400}, {"prompt": "a b"}, {"change": wrong_scaling}, {"change": swap_blocks}],
    ids=["timestep", "prompt", "scale", "block"],
)
def test_a_mistake_exceeds_the_bound_a_hundredfold(model, expected, mistake):
    found = checks(rewritten(model, **mistake), expected)
    assert not all(check.passed for check in found)
    assert max(check.divergence for check in found) > 100 * BOUND


def test_prompt_is_baked_in(model):
    expected = eager_pyramid(load_model(model, "a b"), FRAMES, 300)
    assert all(check.passed for check in checks(rewritten(model, prompt="a b"), expected))


@pytest.mark.parametrize(
    "blocks", [("down",), *(pytest.param(one, marks=pytest.mark.slow) for one in (("mid",), ("up", "down")))]
)
def test_maps_of_some_blocks(small_pipeline, blocks):
    expected = eager_pyramid(load_model(str(small_pipeline)), FRAMES, 300, blocks)
    found = rewritten(str(small_pipeline), blocks=blocks)
    assert len(found) == len(expected) == {"down": 3, "mid": 1, "up": 3}[blocks[0]]
    assert all(check.passed for check in checks(found, expected))


@pytest.mark.slow
def test_noise_of_a_seed(small_pipeline):
    model = str(small_pipeline)
    expected = eager_pyramid(load_model(model), FRAMES, 300, noise_seed=7)
    assert all(check.passed for check in checks(rewritten(model, noise_seed=7), expected))
    for other in ({}, {"noise_seed": 8}):
        assert max(check.divergence for check in checks(rewritten(model, **other), expected)) > 100 * BOUND


def test_every_layout_of_the_frame_gives_the_same_image(least_pipeline):
    """Exactly; the maps differ by what PyTorch's convolutions make of another order in memory."""
    frames = np.ascontiguousarray(FRAMES[:, :16, :32])
    images, maps = [], []
    network = FrameToPyramid(load_model(str(least_pipeline)), 300, size=(16, 32)).eval()
    network.encoder.register_forward_pre_hook(lambda _, given: images.append(given[0]))
    for layout in FRAME_INPUTS.values():
        network.frame_input = layout
        with torch.no_grad():
            maps.append(network(torch.from_numpy(layout.convert(frames)))[0].numpy())
    assert images[0].min() < -0.9 and images[0].max() > 0.9 and len(images) == 3
    assert all(torch.equal(images[0], image) for image in images)
    assert maps[0].std() > 0 and max(mean_divergence(found, maps[0]) for found in maps) < 1e-9
    assert pyramid_levels(network, 16, 32) == (Level(8, 16, 3),)


def save_tiny_autoencoder(folder, channels=4):
    from diffusers import AutoencoderTiny

    torch.manual_seed(1)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        latent_channels=channels,
    ).save_pretrained(folder)
    return str(folder)


def test_a_tiny_autoencoder_in_place_of_the_vae(small_pipeline, tmp_path):
    model, vae = str(small_pipeline), save_tiny_autoencoder(tmp_path / "taesd")
    pipeline = load_model(model, vae=vae)
    assert pipeline.vae_source == "taesd" and pipeline.stride == 64
    expected = eager_pyramid(pipeline, FRAMES, 300)
    assert all(check.passed for check in checks(rewritten(model, vae=vae), expected))
    assert max(check.divergence for check in checks(rewritten(model), expected)) > 100 * BOUND


def test_a_vae_of_other_channels_is_refused(small_pipeline, tmp_path):
    with pytest.raises(DiffSegError, match="takes 4 channels and the VAE gives 16"):
        load_model(str(small_pipeline), vae=save_tiny_autoencoder(tmp_path / "wide", 16))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_loads_as_such_and_softmax_stays_exact(small_pipeline, precision):
    network = network_of(str(small_pipeline), precision=precision)
    kinds = {parameter.dtype for parameter in network.parameters()}
    assert kinds == {{"fp16": torch.float16, "bf16": torch.bfloat16}[precision]}
    with torch.no_grad():
        for maps in network(torch.from_numpy(FRAMES)):
            assert maps.dtype == torch.float32 and torch.isfinite(maps).all()
            assert (maps.sum(-1) - 1).abs().max() < 1e-4
    nodes = torch.export.export(network, (torch.from_numpy(FRAMES),)).graph.nodes
    # The encoder's own attention too: none is left to PyTorch's fused one, which exports as a softmax of its own type.
    assert not [node for node in nodes if "scaled_dot_product" in str(node.target)]
    softmaxes = [node.args[0].meta["val"].dtype for node in nodes if "softmax" in str(node.target)]
    assert set(softmaxes) == {torch.float32} and len(softmaxes) == 1 + 2 * 10  # encoder; self and cross


def test_encoder_attention_equals_diffusers(small_pipeline):
    from export.graph.network import EncoderAttention, rewrite_encoder_attention

    ours, theirs = (load_model(str(small_pipeline)).vae.encoder for _ in range(2))
    rewrite_encoder_attention(ours)
    assert [type(layer) for layer in ours.mid_block.attentions] == [EncoderAttention]
    image = torch.rand(2, 3, 64, 128) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-5, atol=1e-5)


def test_queries_are_scaled_before_the_product():
    """Logits of twice float16's largest number, were the product taken first."""
    from export.graph.attention import attend

    query = torch.full((1, 1, 2, 64), 32.0, dtype=torch.float16)
    context, probabilities = attend(query * 64**-0.5, query * 2, query)
    assert torch.isfinite(probabilities).all() and torch.isfinite(context).all()
    assert not torch.isfinite(query @ (query * 2).transpose(-1, -2)).all()


@pytest.mark.slow
def test_attention_by_head_for_a_cpu_equals_diffusers(small_pipeline, monkeypatch):
    """Levels below the limit stay whole."""
    import export.graph.attention

    monkeypatch.setattr(export.graph.attention, "LARGE", 96)
    model = str(small_pipeline)
    expected = eager_pyramid(load_model(model), FRAMES, 300)
    assert all(check.passed for check in checks(rewritten(model, target="cpu"), expected))
    plain = torch.export.export(network_of(model), (torch.from_numpy(FRAMES),))
    by_head = torch.export.export(network_of(model, target="cpu"), (torch.from_numpy(FRAMES),))
    softmaxes = [sum("softmax" in str(node.target) for node in program.graph.nodes) for program in (plain, by_head)]
    assert softmaxes[1] == softmaxes[0] + (3 + 3) * (4 - 1)  # layers of the two finest levels, four heads each


def test_what_cannot_be_traced_with_a_dynamic_batch_is_one_line():
    from export.graph.trace import explained

    with pytest.raises(DiffSegError, match=r"--batch dynamic: .*\(too many prompts\); give --batch 1"), explained(True):
        raise torch.onnx.OnnxExporterError("it failed\nbadly") from ValueError("too many\nprompts")
    with pytest.raises(torch.onnx.OnnxExporterError), explained(False):
        raise torch.onnx.OnnxExporterError("a bug")

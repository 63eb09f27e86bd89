"""The rewritten network gives what diffusers gives, and the yardstick sees every mistake worth fearing."""

import numpy as np
import pytest
import torch

from export.attention import BLOCKS
from export.check import BOUND, compare, random_frame
from export.eager import eager_pyramid
from export.network import FrameToPyramid, pyramid_levels
from export.pipeline import load_pipeline
from runtime.sidecar import EngineSpec, Level
from tests.pipelines import save_pipeline

FRAMES = np.stack([random_frame(128, 192, seed) for seed in (0, 1)])


def spec_of(levels):
    return EngineSpec("x", None, "attention", 128, 192, None, levels, 300, "", "fp32", "fp32", 1.0, BLOCKS, (1.1,))


def rewritten(model, timestep=300, prompt="", change=lambda pipeline: None):
    pipeline = load_pipeline(str(model), prompt)
    change(pipeline)
    network = FrameToPyramid(pipeline, timestep).eval()
    with torch.no_grad():
        return [maps.numpy() for maps in network(torch.from_numpy(FRAMES))]


@pytest.fixture(scope="module")
def expected(small_pipeline):
    return eager_pyramid(load_pipeline(str(small_pipeline)), FRAMES, 300)


@pytest.fixture(scope="module")
def spec(small_pipeline):
    network = FrameToPyramid(load_pipeline(str(small_pipeline)), 300).eval()
    return spec_of(pyramid_levels(network, 128, 192))


def test_levels_follow_a_frame_that_is_not_square(spec):
    assert spec.levels == (Level(16, 24, 3), Level(8, 12, 3), Level(4, 6, 3), Level(2, 3, 1))


def test_network_equals_diffusers(small_pipeline, expected, spec):
    found = rewritten(small_pipeline)
    assert [m.shape for m in found] == [(2, 384, 384), (2, 96, 96), (2, 24, 24), (2, 6, 6)]
    for check in compare(spec, found, expected):
        assert check.passed and check.divergence < 1e-7, check


def test_maps_of_the_fixture_are_far_from_uniform(expected):
    for maps in expected[:2]:
        n = maps.shape[-1]
        assert np.mean(np.sum(maps * np.log(np.maximum(maps, 1e-12) * n), axis=-1)) > 0.5


def swap_blocks(pipeline):
    blocks = pipeline.unet.up_blocks[3].attentions
    blocks[0], blocks[1] = blocks[1], blocks[0]


def wrong_scaling(pipeline):
    pipeline.vae.register_to_config(scaling_factor=pipeline.vae.config.scaling_factor * 1.1)


@pytest.mark.parametrize(
    "mistake",
    [
        {"timestep": 400},
        {"prompt": "a cat"},
        {"change": wrong_scaling},
        {"change": swap_blocks},
    ],
    ids=["timestep", "prompt", "scale", "block"],
)
def test_a_mistake_exceeds_the_bound_a_hundredfold(small_pipeline, expected, spec, mistake):
    checks = compare(spec, rewritten(small_pipeline, **mistake), expected)
    assert not all(check.passed for check in checks)
    assert max(check.divergence for check in checks) > 100 * BOUND


def test_prompt_is_baked_in(small_pipeline, spec):
    expected = eager_pyramid(load_pipeline(str(small_pipeline), "a cat"), FRAMES, 300)
    assert all(check.passed for check in compare(spec, rewritten(small_pipeline, prompt="a cat"), expected))


def test_second_generation_shapes(tmp_path, spec):
    """SD 2.x: linear projections, heads per block, upcast attention."""
    model = save_pipeline(
        tmp_path / "sd2", use_linear_projection=True, attention_head_dim=(2, 4, 8, 8), upcast_attention=True
    )
    expected = eager_pyramid(load_pipeline(str(model)), FRAMES, 300)
    assert all(check.passed for check in compare(spec, rewritten(model), expected))

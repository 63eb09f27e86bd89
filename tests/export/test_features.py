"""The head `features`: what diffusers gives at that layer, and nothing that follows it in the file."""

import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from export.__main__ import app
from export.check.eager import eager_features, eager_pyramid
from export.check.features import BOUND, compare_features, relative_error
from export.check.maps import BOUND as MAPS_BOUND
from export.check.maps import Reference, mean_divergence, random_frame
from export.graph.features import FrameToFeatures, feature_level, find_feature_block
from export.graph.network import FrameToPyramid
from export.model.load import load_model
from runtime import DiffSegError, Segmenter
from runtime.engine.registry import open_engine
from runtime.engine.spec import Level, sidecar_path
from runtime.merge import normalized_cut
from tools.tiny.random_pipelines import FAMILIES, save_random_pipeline

FOLDER = tempfile.TemporaryDirectory()
SIZE = (64, 128)
FRAMES = np.stack([random_frame(*SIZE, seed) for seed in (0, 1)])
# Where the layer is, the grid of its tokens, and its channels.
LAYERS = {
    "small": ("down_blocks.2.attentions.0.transformer_blocks.0", (2, 4), 64),
    "small-segmind-vega": ("down_blocks.2.attentions.1.transformer_blocks.1", (2, 4), 64),
}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@cache
def pipeline(family):
    return str(save_random_pipeline(Path(tempfile.mkdtemp(dir=FOLDER.name)) / family, family))


@cache
def of_diffusers(family):
    return eager_features(load_model(pipeline(family)), FRAMES, 50, noise_seed=0)[0]


def network_of(model, timestep=50, prompt="", change=None, noise_seed=0, **options):
    loaded = load_model(model, prompt, **options)
    if change:
        change(loaded)
    return FrameToFeatures(loaded, timestep, size=SIZE, noise_seed=noise_seed).eval()


def rewritten(*arguments, **options):
    with torch.no_grad():
        return network_of(*arguments, **options)(torch.from_numpy(FRAMES))[0].numpy()


def swap_blocks(loaded):
    """Two transformer layers of the deepest block change places."""
    layers = loaded.unet.down_blocks[-1].attentions[-1].transformer_blocks
    layers[0], layers[1] = layers[1], layers[0]


@pytest.mark.parametrize("family", ["small", pytest.param("small-segmind-vega", marks=pytest.mark.slow)])
def test_features_equal_those_of_diffusers(family):
    where, grid, channels = LAYERS[family]
    network = network_of(pipeline(family))
    assert find_feature_block(network.unet, "x") is network.unet.get_submodule(where)
    assert feature_level(network, *SIZE) == (Level(*grid, 1), channels)
    with torch.no_grad():
        found = network(torch.from_numpy(FRAMES))[0].numpy()
    assert found.shape == (2, grid[0] * grid[1], channels) and found.dtype == np.float32
    assert relative_error(found, of_diffusers(family)) < BOUND


@pytest.mark.proof  # 15 s
def test_maps_of_a_distilled_model_equal_those_of_diffusers():
    model = pipeline("small-ssd-1b")
    expected = eager_pyramid(load_model(model), FRAMES, 300)
    network = FrameToPyramid(load_model(model), 300, size=SIZE).eval()
    with torch.no_grad():
        found = [maps.numpy() for maps in network(torch.from_numpy(FRAMES))]
    assert [maps.shape[1] for maps in found] == [32, 8]
    assert all(mean_divergence(one, other) < MAPS_BOUND for one, other in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake",
    [{"timestep": 100}, {"noise_seed": 1}, {"noise_seed": None}, {"prompt": "a b"}, {"change": swap_blocks}],
    ids=["timestep", "seed", "no noise", "prompt", "block"],
)
def test_a_mistake_exceeds_the_bound_a_hundredfold(mistake):
    found = rewritten(pipeline("small-segmind-vega"), **mistake)
    assert relative_error(found, of_diffusers("small-segmind-vega")) > 100 * BOUND


def test_the_pass_ends_with_the_features():
    """The up blocks never run, and a whole pass gives the same features."""
    network = network_of(pipeline("small"))
    ran = []
    network.unet.up_blocks[0].register_forward_pre_hook(lambda *_: ran.append(1))
    frames = torch.from_numpy(FRAMES)
    with torch.no_grad():
        (found,) = network(frames)
        assert not ran
        network.run(frames)
    assert ran and torch.equal(network._keeper.take(), found)


@pytest.fixture(scope="module")
def engine(least_pipeline, tmp_path_factory):
    """Exported and checked by the command, with a dynamic batch."""
    folder = tmp_path_factory.mktemp("features")
    result = run(
        least_pipeline, "--output", folder / "x", "--head", "features", "--size", "16x32", "--batch", "dynamic"
    )
    assert result.exit_code == 0, result.stderr
    assert "features have a relative error of" in result.stderr and ": ok" in result.stderr
    return folder / "x.onnx"


@pytest.mark.slow
def test_an_engine_of_features(engine, least_pipeline):
    sidecar = json.loads(sidecar_path(engine).read_text())
    assert (sidecar["head"], sidecar["timestep"], sidecar["noise_seed"]) == ("features", 50, 0)
    assert (sidecar["levels"], sidecar["channels"]) == ([{"height": 8, "width": 16, "layers": 1}], 32)
    frames = np.stack([random_frame(16, 32, seed) for seed in (0, 1)])
    opened = open_engine(engine, "cpu")
    (features,) = opened.infer(frames)
    expected = eager_features(load_model(str(least_pipeline)), frames, 50, noise_seed=0)[0]
    assert features.shape == (2, 128, 32) and relative_error(features, expected) < BOUND
    cut = normalized_cut(features[1], (8, 16), size=(16, 32))
    assert np.array_equal(Segmenter(opened)(frames[1]).labels, np.unique(cut, return_inverse=True)[1].reshape(16, 32))
    # An engine of another seed is found out.
    other = eager_features(load_model(str(least_pipeline)), frames, 50, noise_seed=1)
    (check,) = compare_features(opened.spec, [features], Reference(frames, other))
    assert not check.passed and check.error > 100 * BOUND


@pytest.mark.slow
def test_nothing_that_follows_is_in_the_file(engine, least_pipeline):
    from safetensors.numpy import load_file

    graph = onnx.load(engine).graph
    contents = [tensor.raw_data for tensor in graph.initializer if len(tensor.raw_data) > 64]
    unet = load_file(least_pipeline / "unet" / "diffusion_pytorch_model.safetensors")

    def present(name):
        weight = unet[name]
        return weight.tobytes() in contents or np.ascontiguousarray(weight.T).tobytes() in contents

    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert (
        present("conv_in.weight")
        and present(f"{block}.attn1.to_v.weight")
        and present(f"{block}.attn1.to_out.0.weight")
    )
    later = [f"{block}.attn2.to_q.weight", f"{block}.ff.net.2.weight", "down_blocks.0.downsamplers.0.conv.weight"]
    later += [name for name in unet if name.startswith(("down_blocks.1.", "up_blocks.")) and unet[name].ndim > 1]
    assert len(later) > 20 and not any(present(name) for name in later)
    # One softmax of self-attention and one of the encoder: the other four attention layers are gone.
    assert sum(node.op_type == "Softmax" for node in graph.node) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attention", "down"], "--attention does not go with --head features: features are cut"),
        (["--threshold", "1"], "--threshold does not go with --head features"),
        (["--grid", "8"], "--grid does not go with --head features"),
        (["--weights", "1,0"], "--weights does not go with --head features"),
        (["--solver", "kcut"], "--solver: expected ncut with --head features, found 'kcut'"),
        (["--noise-seed", "x"], "--noise-seed: expected 0 to 2^63 - 1, or none, found 'x'"),
        (["--noise-seed", "-1"], "--noise-seed: expected 0 to 2^63 - 1, or none, found '-1'"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    result = run("nowhere", "--output", tmp_path / "x", "--head", "features", *options)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_features_need_attention_on_the_way_down_and_noise_a_schedule():
    model = load_model(pipeline("small"))
    model.schedule = None
    with pytest.raises(DiffSegError, match=r"has no noise schedule .* export with --noise-seed none"):
        FrameToFeatures(model, 50, size=SIZE, noise_seed=0)
    for block in model.unet.down_blocks:
        block.attentions = None
    with pytest.raises(DiffSegError, match=r"has no self-attention on the way down.*choose --head attention"):
        find_feature_block(model.unet, model.source)


@pytest.mark.parametrize(("name", "millions"), [("ssd-1b", 1331), ("segmind-vega", 745)])
def test_the_published_shapes_are_those_of_the_distilled_models(name, millions):
    """The number of parameters is that of the models' cards, and the features are where DiffCut reads them."""
    import diffusers

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**FAMILIES[name].unet)
    assert round(sum(weight.numel() for weight in unet.parameters()) / 1e6) == millions
    assert find_feature_block(unet, name) is unet.down_blocks[-1].attentions[-1].transformer_blocks[-1]
    assert not unet.mid_block.attentions and len(unet.mid_block.resnets) == 1

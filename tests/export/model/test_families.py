"""What can be exported and what is refused, before any weight is read; checkpoint files."""

import json
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.check.maps import BOUND, mean_divergence, random_frame
from export.model.describe import describe
from export.model.source import find_model, hub_error
from runtime import DiffSegError
from tools.tiny.random_pipelines import save_random_pipeline


@pytest.fixture
def model(small_pipeline, tmp_path):
    """A copy of the small pipeline, to be spoilt; its weights are links."""
    shutil.copytree(small_pipeline, tmp_path / "m", copy_function=lambda a, b: shutil.copy(a, b))
    return tmp_path / "m"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refuses(model, *words, **options):
    with pytest.raises(DiffSegError) as caught:
        find_model(str(model), **options)
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


@pytest.mark.parametrize(
    "name", ["FluxPipeline", "StableDiffusion3Pipeline", "PixArtAlphaPipeline", "StableDiffusionUpscalePipeline"]
)
def test_other_pipelines(model, name):
    edit(model / "model_index.json", _class_name=name)
    refuses(model, f"is a {name}; supported: Stable Diffusion 1.x and 2.x", "XL")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_embed_type", "timestep"),
        ("only_cross_attention", True),
        ("resnet_time_scale_shift", "scale_shift"),
        ("dual_cross_attention", True),
        ("encoder_hid_dim_type", "text_proj"),
        ("down_block_types", ["SimpleCrossAttnDownBlock2D"] * 4),
        ("time_cond_proj_dim", 256),
    ],
)
def test_other_unets(model, key, value):
    edit(model / "unet" / "config.json", **{key: value})
    refuses(model, f"its U-Net has {key} ", "supported: Stable Diffusion 1.x")


def test_inpainting_unet(model):
    edit(model / "unet" / "config.json", in_channels=9)
    refuses(model, "takes 9 channels and the VAE gives 4")


def test_xl_unet_in_a_plain_pipeline(model):
    edit(model / "unet" / "config.json", addition_embed_type="text_time")
    refuses(model, "addition_embed_type 'text_time'; expected None")


def test_incomplete_folders(model):
    (model / "unet" / "config.json").rename(model / "unet" / "away.json")
    refuses(model, "has no unet/config.json", "download it again")
    (model / "unet" / "config.json").write_text("[]")
    refuses(model, "expected a JSON object")
    (model / "unet" / "away.json").replace(model / "unet" / "config.json")
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refuses(model, "is cut off", "download it again")
    weights.unlink()
    refuses(model, "vae has no weights")
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (model / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (model / "vae" / "part-1.safetensors").write_bytes(whole)
    refuses(model, "lacks 1 of 2 shards", "part-2.safetensors")


def test_a_folder_without_a_text_encoder(model):
    edit(model / "model_index.json", text_encoder=[None, None])
    refuses(model, "has no text_encoder in its model_index.json")


def test_files_that_are_no_checkpoint(tmp_path):
    (tmp_path / "a.safetensors").write_text("hello")
    refuses(tmp_path / "a.safetensors", "is not a .safetensors file")
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "b.safetensors")
    refuses(tmp_path / "b.safetensors", "not a Stable Diffusion checkpoint", "supported")
    save_file({"lora_unet_down.lora_up.weight": np.zeros(3, np.float32)}, tmp_path / "c.safetensors")
    refuses(tmp_path / "c.safetensors", "is a LoRA")


def test_config_belongs_to_checkpoint_files(model):
    refuses(model, "--config goes with a checkpoint file", config=str(model))


def test_hub_errors_are_one_line_each():
    from huggingface_hub import errors

    cases = {
        errors.GatedRepoError: "is gated: accept its licence",
        errors.RepositoryNotFoundError: "the hub has no model o/n",
        errors.RevisionNotFoundError: "has no revision 'main'",
        errors.LocalEntryNotFoundError: "cannot be reached",
        errors.RemoteEntryNotFoundError: "o/n has no model_index.json",
    }
    for kind, words in cases.items():
        # They are made from an HTTP response, of a library that changes with the hub client's version.
        text = str(hub_error(kind.__new__(kind), errors, "o/n", "model_index.json", "main"))
        assert words in text and "\n" not in text


def test_nothing_heavy_before_a_refusal(model):
    import subprocess

    edit(model / "model_index.json", _class_name="FluxPipeline")
    code = (
        "import sys\nfrom export.model.source import find_model\n"
        f"try: find_model({str(model)!r})\nexcept Exception as error: print(error)\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is a FluxPipeline" in done.stdout and not {"torch", "diffusers"} & set(done.stdout.split())


def test_description_needs_no_weights(model):
    for weights in model.rglob("*.safetensors"):
        weights.write_bytes(weights.read_bytes())
    found = describe(str(model), (128, 192), ("down",))
    assert [level.output for level in found.levels] == ["attention_16x24", "attention_8x12", "attention_4x6"]
    assert found.stride == 64 and found.native_size == 128 and found.parameters["U-Net"] > 1e6
    with pytest.raises(DiffSegError, match="multiples of 64; for example 128x192"):
        describe(str(model), (130, 190))


def in_original_layout(folder):
    """The tensors of a small diffusers folder under the names of Stable Diffusion's first release."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    last = 3  # level
    places = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for level in range(4):  # one layer a level down, two up
        down, up = 1 + 2 * level, 2 * level
        places[f"down_blocks.{level}.resnets.0"] = f"input_blocks.{down}.0"
        places[f"down_blocks.{level}.attentions.0"] = f"input_blocks.{down}.1"
        places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{down + 1}.0.op"
        for layer in range(2):
            places[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{up + layer}.0"
            places[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{up + layer}.1"
        places[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{up + 1}.{1 if level == 0 else 2}.conv"
    resnet = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    tensors = {}
    for name, tensor in unet.items():
        place = max((p for p in places if name.startswith(p + ".")), key=len)
        rest = name[len(place) + 1 :]
        if ".resnets." in f".{place}.":
            inner, _, kind = rest.rpartition(".")
            rest = f"{resnet[inner]}.{kind}"
        tensors[f"model.diffusion_model.{places[place]}.{rest}"] = tensor
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for name, tensor in vae.items():
        new = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        new = new.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        for level in range(4):
            new = new.replace(f"down_blocks.{level}.resnets", f"down.{level}.block")
            new = new.replace(f"down_blocks.{level}.downsamplers.0", f"down.{level}.downsample")
            new = new.replace(f"up_blocks.{level}.resnets", f"up.{last - level}.block")
            new = new.replace(f"up_blocks.{level}.upsamplers.0", f"up.{last - level}.upsample")
        if "mid_block.attentions.0" in new:
            for ours, theirs in attention.items():
                new = new.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
            if tensor.ndim == 2:
                tensor = tensor[..., None, None]  # they were convolutions of one pixel
        tensors[f"first_stage_model.{new}"] = tensor
    for name, tensor in text.items():
        inner = name if name.startswith("text_model.") else f"text_model.{name}"
        tensors[f"cond_stage_model.transformer.{inner}"] = tensor
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def test_checkpoint_file_gives_the_maps_of_its_folder(small_pipeline, tmp_path):
    from export.check.eager import eager_pyramid
    from export.model.load import load_model

    path = tmp_path / "model.safetensors"
    save_file(in_original_layout(small_pipeline), path)
    frames = random_frame(128, 128)[None]
    expected = eager_pyramid(load_model(str(small_pipeline)), frames, 300)
    loaded = load_model(str(path), config=str(small_pipeline))
    assert loaded.source == "model.safetensors"
    for found, wanted in zip(eager_pyramid(loaded, frames, 300), expected, strict=True):
        assert mean_divergence(found, wanted) < BOUND
    path.write_bytes(path.read_bytes()[:-1000])
    refuses(path, "is cut off", config=str(small_pipeline))


def test_checkpoint_file_of_another_family_than_its_config(small_pipeline, tmp_path):
    other = save_random_pipeline(tmp_path / "xl", "small-sdxl")
    path = tmp_path / "model.safetensors"
    save_file(in_original_layout(small_pipeline), path)
    refuses(path, "is Stable Diffusion 1.x, and the configuration of", "XL", config=str(other))

"""Export from end to end: what is written, what is refused, and that nothing bad is left behind."""

import json
import re

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from export.__main__ import app
from export.check.maps import OutputCheck, random_frame
from export.engine import ExportRequest, export_engine
from export.parity import check_engine
from runtime.engine.registry import open_engine
from runtime.engine.spec import METADATA_KEY, sidecar_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_a_model_becomes_an_engine(least_pipeline, tmp_path):
    """The whole way and its check, with a model of two levels, of which one has attention: quick to trace."""
    options = ("--size", "16x32", "--threshold", "0.3", "--auto", "--input", "float-nchw-rgb-unit")
    result = run(least_pipeline, "--output", tmp_path / "least", *options)
    assert result.exit_code == 0, result.stderr
    assert "row KL" in result.stderr and "ok" in result.stderr
    engine = open_engine(tmp_path / "least.onnx", "cpu")
    (taken,) = onnx.load(engine.path).graph.input
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [side.dim_value for side in taken.type.tensor_type.shape.dim] == [1, 3, 16, 32]
    assert engine.spec.input == "float-nchw-rgb-unit" and engine.spec.auto
    assert json.loads(sidecar_path(engine.path).read_text())["levels"] == [{"height": 8, "width": 16, "layers": 3}]
    (maps,) = engine.infer(random_frame(16, 32)[None])
    assert maps.shape == (1, 128, 128)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)


def test_file_says_what_it_is(small_engine, small_pipeline):
    model = onnx.load(small_engine)
    (entry,) = [entry for entry in model.metadata_props if entry.key == METADATA_KEY]
    sidecar = json.loads(sidecar_path(small_engine).read_text())
    assert json.loads(entry.value) == sidecar
    assert sidecar["head"] == "attention" and sidecar["thresholds"] == [0.3, 0.2] and sidecar["timestep"] == 300
    assert sidecar["levels"][0] == {"height": 16, "width": 24, "layers": 3}
    assert sidecar["source"] == small_pipeline.name
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [21]
    assert [i.name for i in model.graph.input] == ["frame"]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_no_dead_weight(small_engine, small_pipeline):
    """Prompt keys, time embedding, decoder and all that follows the last self-attention are absent."""
    from safetensors.numpy import load_file

    model = onnx.load(small_engine)
    contents = [tensor.raw_data for tensor in model.graph.initializer if len(tensor.raw_data) > 64]
    assert len(contents) == len(set(contents))
    unet = load_file(small_pipeline / "unet" / "diffusion_pytorch_model.safetensors")

    def present(name):
        weight = unet[name]
        return weight.tobytes() in contents or np.ascontiguousarray(weight.T).tobytes() in contents

    assert present("down_blocks.0.resnets.0.conv1.weight")
    last = "up_blocks.3.attentions.1.transformer_blocks.0"
    assert present(f"{last}.attn1.to_k.weight") and not present(f"{last}.attn1.to_v.weight")
    for dead in (f"{last}.attn2.to_q.weight", f"{last}.ff.net.2.weight", "conv_out.weight"):
        assert not present(dead), dead
    for folded in ("time_embedding.linear_1.weight", "down_blocks.0.resnets.0.time_emb_proj.weight"):
        assert not present(folded), folded
    assert not present("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight")


def test_dynamic_batch_equals_single_frames(small_engine):
    engine = open_engine(small_engine, "cpu")
    frames = np.stack([random_frame(128, 192, seed) for seed in range(3)])
    together = engine.infer(frames)
    for index in range(3):
        for whole, alone in zip(together, engine.infer(frames[index : index + 1]), strict=True):
            np.testing.assert_allclose(whole[index], alone[0], atol=1e-5)


@pytest.mark.slow
def test_command_line_writes_engine_and_report(small_pipeline, tmp_path):
    result = run(small_pipeline, "--output", tmp_path / "new" / "unet", "--size", "64x128", "--compact")
    assert result.exit_code == 0, result.stderr
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["unet.onnx", "unet.onnx.json"]
    for word in ("attention_8x16", "row KL", "ok", "unet.onnx"):
        assert word in result.stderr
    assert result.stdout == ""
    model = onnx.load(tmp_path / "new" / "unet.onnx")
    half = sum(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    assert half > 50 and open_engine(tmp_path / "new" / "unet.onnx").spec.storage == "fp16"


def test_check_finds_an_engine_of_another_model(small_engine, tmp_path):
    from tools.tiny.random_pipelines import save_random_pipeline

    other = save_random_pipeline(tmp_path / "other", seed=1)
    assert not all(check.passed for check in check_engine(small_engine, str(other)))


@pytest.mark.slow
def test_an_engine_that_fails_its_check_is_not_left(small_pipeline, tmp_path, monkeypatch):
    from export.engine import CheckFailed

    bad = OutputCheck("attention_16x16", 1.0, 1.0, 1.0, 0.0, True, 1e-6)
    monkeypatch.setattr("export.engine.check_engine", lambda path, model, **_: [bad])
    with pytest.raises(CheckFailed, match=r"does not reproduce PyTorch: attention_16x16.*no engine was left"):
        export_engine(ExportRequest(model=str(small_pipeline), size=(64, 64)), tmp_path / "bad.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "100"], "multiples of 64; for example 128x128"),
        (["--size", "0x64"], "expected HxW"),
        (["--size", "axb"], "expected HxW"),
        (["--batch", "0"], "--batch: expected"),
        (["--timestep", "1000"], "--timestep: expected 0 to 999, found 1000"),
        (["--threshold", "1.1,x"], "--threshold: expected numbers above 0"),
        (["--threshold", "0"], "--threshold: expected numbers above 0"),
        (["--input", "float-nhwc"], "--input: expected uint8-nhwc-bgr, float-nchw-rgb, float-nchw-rgb-unit, found"),
    ],
)
def test_bad_options(small_pipeline, tmp_path, options, message):
    result = run(small_pipeline, "--output", tmp_path / "x", *options)
    assert result.exit_code in (1, 2) and message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_list_says_how_a_frame_is_taken(small_pipeline):
    result = run("list", small_pipeline, "--input", "float-nchw-rgb")
    assert result.exit_code == 0 and re.search(
        r"^input +frame, float32 \[B, 3, H, W\] RGB, 0 to 255$", result.stdout, re.M
    )
    assert run("list", small_pipeline, "--input", "x").exit_code == 2


def test_bad_models(small_pipeline, tmp_path):
    import shutil

    result = run(tmp_path / "nowhere" / "at" / "all", "--output", tmp_path / "x")
    assert result.exit_code == 1 and "no folder" in result.stderr and "owner/name" in result.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no model_index.json" in run(empty, "--output", tmp_path / "x").stderr
    (empty / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert "is a FluxPipeline; supported: Stable Diffusion 1.x and 2.x" in run(empty, "--output", tmp_path / "x").stderr
    (empty / "model_index.json").write_text("{")
    assert "is not JSON" in run(empty, "--output", tmp_path / "x").stderr
    half = tmp_path / "half"
    shutil.copytree(small_pipeline, half)
    (half / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    result = run(half, "--output", tmp_path / "x")
    assert result.exit_code == 1 and "unet has no weights" in result.stderr and "download it again" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*.onnx*"))


def test_a_folder_where_the_engine_would_go(small_pipeline, tmp_path):
    (tmp_path / "x.onnx").mkdir()
    result = run(small_pipeline, "--output", tmp_path / "x")
    assert result.exit_code == 1 and "x.onnx is a folder" in result.stderr


@pytest.mark.slow
def test_an_older_engine_is_replaced_whole(small_pipeline, tmp_path):
    for name in ("x.onnx", "x.onnx.json", "x.onnx.data"):
        (tmp_path / name).write_text("old")
    export_engine(ExportRequest(model=str(small_pipeline), size=(64, 64)), tmp_path / "x.onnx", check=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.onnx", "x.onnx.json"]
    assert open_engine(tmp_path / "x.onnx", "cpu").spec.height == 64


def test_full_disk(small_pipeline, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    result = run(small_pipeline, "--output", tmp_path / "x")
    assert result.exit_code == 1 and "has 1 MB left, the engine needs" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output(small_pipeline, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(small_pipeline, "--output", tmp_path / "file" / "x")
    assert result.exit_code == 1 and "cannot write into" in result.stderr
    assert "is a folder" in run(small_pipeline, "--output", tmp_path).stderr

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("diffusers")
pytest.importorskip("skimage")

from runtime.segmenter import Segmenter
from tools.tiny.__main__ import app


@pytest.mark.proof
def test_one_command_makes_the_engine_and_goes_on_where_it_was(tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "engine"
    photos.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (200, 260, 3), np.uint8)
        cv2.imwrite(str(photos / f"{number}.png"), pixels)
    words = ["engine", "--photos", str(photos), "--output", str(output), "--rehearse"]
    assert CliRunner().invoke(app, words).exit_code == 0
    output = output / "rehearsal"
    with Segmenter.open(output / "tiny.onnx", device="cpu") as segmenter:
        assert segmenter(np.zeros((64, 96, 3), np.uint8)).labels.shape == (64, 96)
    weights = output / "tiny" / "unet" / "diffusion_pytorch_model.safetensors"
    trained = weights.read_bytes()
    (output / "tiny.onnx").unlink()
    assert CliRunner().invoke(app, words).exit_code == 0
    assert (output / "tiny.onnx").is_file() and (output / "tiny-merge.onnx").is_file()
    assert weights.read_bytes() == trained

"""Words: their places in prompts, and maps that are diffusers' own; a wrong token, order or layer is caught."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from export.__main__ import app
from export.check.maps import BOUND, Reference, mean_divergence, random_frame
from export.check.words import _rows, compare_words, eager_words
from export.engine import ExportRequest, check_request, export_engine
from export.graph.labels import FrameToLabels
from export.graph.network import FrameToPyramid
from export.model.load import load_model
from export.model.words import place_words
from runtime import DiffSegError, Segmenter
from runtime.engine.base import rebuild_command
from runtime.engine.registry import open_engine
from runtime.engine.spec import EngineSpec, Level, sidecar_path
from tools.tiny import random_pipelines as models

FRAMES = np.stack([random_frame(32, 64, seed) for seed in (0, 1)])
WORDS = ("c", "d", "e f")
ONE_ATTENTION = {"block_out_channels": (32, 32), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
ONE_ATTENTION |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "mid_block_type": None}
SMALL_VAE = {"block_out_channels": (16, 16), "down_block_types": ("DownEncoderBlock2D",) * 2}
SMALL_VAE |= {"up_block_types": ("UpDecoderBlock2D",) * 2}


@pytest.fixture(scope="module", params=["small", "small-sdxl"])
def model(request, tmp_path_factory):
    """A pipeline of two resolutions and one with attention; one of Stable Diffusion XL with two text encoders."""
    shape, more = models.FAMILIES[request.param], ONE_ATTENTION if request.param == "small" else {}
    family = models.RandomFamily({**shape.unet, **more}, {**shape.vae, **SMALL_VAE}, shape.text, sharpness=6.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.FAMILIES, "least", family)
        return str(models.save_random_pipeline(tmp_path_factory.mktemp("words") / request.param, "least", words=True))


def found_in(model, words=WORDS, change=lambda loaded: None, **options):
    loaded = load_model(model, words=words)
    change(loaded)
    with torch.no_grad():
        network = FrameToPyramid(loaded, 300, size=(32, 64), **options)
        return [maps.numpy() for maps in network(torch.from_numpy(FRAMES))]


def checks(found, expected, words=WORDS):
    levels = tuple(Level(*maps.shape[2:], 1) for maps in expected)
    spec = EngineSpec("x", None, "attention", 32, 64, None, levels, 300, "", "fp32", "fp32", 1.0, (), (1.0,),
                      words=words)  # fmt: skip
    return compare_words(spec, found[-len(expected) :], Reference(FRAMES, (), None, expected))


@pytest.fixture(scope="module")
def expected(model):
    return eager_words(load_model(model, words=WORDS), FRAMES, 300)


def test_maps_are_those_of_diffusers_and_the_first_pass_stays_as_it_is(model, expected):
    found = found_in(model)
    for check in checks(found, expected):
        assert check.passed and check.divergence < 1e-7 and check.row_sum < 1e-4, check
    plain = found_in(model, words=())
    assert len(plain) == len(expected) == len(found) - len(expected)
    assert all(np.array_equal(ours, before) for ours, before in zip(found, plain, strict=False))
    assert max(mean_divergence(np.full_like(_rows(one), 1 / one[0, 0].size), _rows(one)) for one in expected) > 0.1


def wrong_token(loaded):
    """Each word's tokens are taken one too early: the comma before it, or the beginning."""
    loaded.words.places = tuple((prompt, tuple(t - 1 for t in tokens)) for prompt, tokens in loaded.words.places)


def wrong_order(loaded):
    loaded.words.places = loaded.words.places[::-1]


def wrong_layer(loaded):
    """The queries of two layers of one resolution change places."""
    blocks = next(block.attentions for block in reversed(loaded.unet.up_blocks) if hasattr(block, "attentions"))
    first, second = (block.transformer_blocks[0].attn2 for block in blocks[:2])
    first.to_q, second.to_q = second.to_q, first.to_q


@pytest.mark.parametrize("model", ["small"], indirect=True)
@pytest.mark.parametrize("mistake", [wrong_token, wrong_order, wrong_layer])
def test_a_mistake_exceeds_the_bound_a_hundredfold(model, expected, mistake, monkeypatch):
    from export.model.words import PromptWords

    def change(loaded):
        # The class is frozen: the mistake is made on a copy that is not.
        copy = type("Copy", (), {"selection": PromptWords.selection})()
        for name in ("words", "places", "embeddings", "pooled"):
            setattr(copy, name, getattr(loaded.words, name))
        loaded.words = copy
        mistake(loaded)

    found = checks(found_in(model, change=change), expected)
    assert not all(check.passed for check in found)
    assert max(check.divergence for check in found) > 100 * BOUND


@pytest.mark.parametrize("model", ["small"], indirect=True)
def test_a_map_that_is_too_large_is_caught(expected):
    assert not any(check.passed for check in checks([maps * 1.01 for maps in expected], expected))
    assert not any(check.passed for check in checks([maps * np.nan for maps in expected], expected))
    with pytest.raises(DiffSegError, match="gives words' maps of shapes"):
        checks([maps[:, :2] for maps in expected], expected)


@pytest.mark.parametrize("model", ["small"], indirect=True)
def test_half_precision_has_bounds_of_its_own(expected):
    """Those of PyTorch's own bfloat16: here maps whose sums are 4 % too large."""
    spec = EngineSpec("x", None, "attention", 32, 64, None, (Level(*expected[0].shape[2:], 1),), 300, "", "fp16",
                      "fp16", 1.0, (), (1.0,), words=WORDS)  # fmt: skip
    reference = Reference(FRAMES, (), (), expected, [maps * 1.04 for maps in expected])
    for factor, passes in ((1.009, True), (1.011, False)):  # a quarter of it is accepted
        (check,) = compare_words(spec, [expected[0] * factor], reference)
        assert check.passed == passes and check.sum_bound == pytest.approx(0.01, rel=1e-3)


def test_more_words_than_a_prompt_holds_are_several_prompts_in_one_batch(model):
    words = ("c", *("e f " * count + "g" for count in range(1, 10)))  # of up to 19 tokens
    loaded = load_model(model, words=words)
    assert len(loaded.words.embeddings) == 2 and {prompt for prompt, _ in loaded.words.places} == {0, 1}
    expected = eager_words(loaded, FRAMES, 300)
    assert all(check.passed for check in checks(found_in(model, words), expected, words))


def test_the_labels_head_passes_the_maps_on():
    """The names that the trace gives are in this order: labels, segments, the words' maps, the pyramid."""
    head = torch.nn.Identity()
    head.shapes = [(2, 2), (1, 1)]
    head.forward = lambda pyramid, thresholds: (pyramid[0] + thresholds, "segments")
    found = FrameToLabels(lambda frame: [frame + n for n in range(4)], head)(torch.zeros(1), torch.ones(1))
    assert [float(one) if one != "segments" else one for one in found] == [1, "segments", 2, 3, 0, 1]


class Tokenizer:
    """Splits as CLIP's does, at spaces and commas; a token is a word. `length` with the special ones."""

    all_special_ids = (0, 1)

    def __call__(self, text, add_special_tokens=True):
        words = text.replace(",", " , ").split()
        ids = [1 if word == "?" else 2 + sum(word.encode()) for word in words]
        return type("Tokens", (), {"input_ids": [0, *ids, 1] if add_special_tokens else ids})


def test_places_follow_from_the_tokens():
    prompts, places = place_words(["sky", "a red car", "tree"], Tokenizer(), 9)
    assert prompts == ["sky, a red car, tree"]
    assert places == ((0, (1,)), (0, (3, 4, 5)), (0, (7,)))
    for word, (prompt, tokens) in zip(("sky", "a red car", "tree"), places, strict=True):
        text = ["", *prompts[prompt].replace(",", " ,").split()]
        assert " ".join(text[token] for token in tokens) == word
    prompts, places = place_words(["sky", "a red car", "tree"], Tokenizer(), 8)  # one token less
    assert prompts == ["sky, a red car", "tree"] and places[2] == (1, (1,))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sky", "a b c d"], "'a b c d'… has 4 tokens, a prompt of this model takes 3; shorten it"),
        (["sky", "?"], r"does not know '\?'; choose another word"),
    ],
)
def test_words_that_a_prompt_cannot_hold(words, message):
    with pytest.raises(DiffSegError, match=message):
        place_words(words, Tokenizer(), 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sky,,tree", "--words: expected words that are not empty, without commas, found ''"),
        ("", "--words: expected words that are not empty"),
        ("sky,tree, Sky", "--words: expected each word once, found 'Sky' twice"),
        ("sky,segment", "--words: 'segment' is what segments without a word are called"),
        (",".join(f"w{number}" for number in range(256)), "--words: expected at most 255 words, found 256"),
    ],
)
def test_bad_words_are_refused_before_the_model_is_looked_for(tmp_path, given, message):
    result = CliRunner().invoke(app, ["nowhere/at/all", "--output", str(tmp_path / "x"), "--words", given])
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_a_request_without_words_is_as_before():
    check_request(ExportRequest(model="x"))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["small"], indirect=True)
def test_from_the_model_to_named_segments(model, tmp_path):
    """The whole way and its check. The head `labels` takes longer to trace; what it adds is tested above."""
    request = ExportRequest(model=model, size=(32, 64), words=WORDS, thresholds=(0.3,), grid=4)
    done = export_engine(request, tmp_path / "x.onnx")
    assert [check.output for check in done.checks] == ["attention_16x32", "words_16x32", "labels"]
    assert json.loads(sidecar_path(tmp_path / "x.onnx").read_text())["words"] == list(WORDS)
    engine = open_engine(tmp_path / "x.onnx", "cpu")
    assert engine.spec.words == WORDS and "--words c,d,'e f'" not in rebuild_command(engine.spec, "")
    assert "--words 'c,d,e f'" in rebuild_command(engine.spec, "")
    result = Segmenter(engine)(FRAMES[0])
    assert result.words.shape == (3, 16, 32) and {result.names[label] for label in range(result.count)} <= set(WORDS)
    np.testing.assert_allclose(result.names.shares.sum(axis=1), 1, rtol=1e-5)

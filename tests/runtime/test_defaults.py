"""What a frame gets where nothing is asked for: the engine's "auto", and pieces as segments, but for identities."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from runtime import segmenter as module
from runtime.engine.base import Engine
from runtime.engine.spec import EngineSpec, Level
from runtime.errors import DiffSegError
from runtime.options import label_type
from runtime.refine.refinement import Refinement
from runtime.segmenter import Segmenter
from runtime.tiles.tiled import in_tiles

TOKENS = 8


class Colours(Engine):
    """Tokens look at those of their own brightness: four grey levels of a frame 64×64. `auto`: by default."""

    def __init__(self, auto=True):
        self.spec = EngineSpec(
            **{"source": "colours", "revision": None, "head": "attention", "height": 64, "width": 64, "batch": 1},
            levels=(Level(TOKENS, TOKENS, 1),),
            **{"timestep": 300, "prompt": "", "precision": "fp32", "storage": "fp32", "latent_scaling": 1.0},
            **{"blocks": ("down",), "thresholds": (0.5, 0.5), "grid": 4, "auto": auto},
        )
        self.device = self.asked = "cpu"

    def _infer(self, inputs):
        (frame,) = inputs["frame"]
        grey = cv2.resize(frame[..., 0], (TOKENS, TOKENS), interpolation=cv2.INTER_AREA).ravel().astype(np.float32)
        maps = np.exp(-np.abs(grey[:, None] - grey) / 20).astype(np.float32)
        return [(maps / maps.sum(axis=1, keepdims=True))[None]]

    def clone(self):
        return self


@pytest.fixture
def opened(monkeypatch):
    """`Segmenter.open` of the engine, with options."""

    def opened(auto=True, **options):
        monkeypatch.setattr(module, "open_engine", lambda *arguments, **given: Colours(auto))
        return Segmenter.open(**options)

    return opened


@pytest.fixture
def frame():
    """Two bright squares on a ground of two greys: uint8 [64, 64, 3]."""
    picture = np.full((64, 64, 3), 40, np.uint8)
    picture[:, 32:] = 60
    picture[8:24, 8:24] = picture[40:56, 40:56] = 220
    return picture


def test_a_photograph_gets_the_engines_default(opened, frame):
    usual, asked = opened(), opened(thresholds="auto", pieces="unlike")
    assert usual.stages.route.auto and not usual.stages.asked and asked.stages.asked
    assert np.array_equal(usual(frame).labels, asked(frame).labels)
    (mapped,) = usual.map([frame])
    assert np.array_equal(mapped.labels, asked(frame).labels)
    settings = usual.stages.settings()
    assert settings == asked.stages.settings() and (settings["auto"], settings["pieces"]) == (True, "unlike")
    labels = usual(frame).labels
    assert labels[16, 16] == labels[48, 48]  # two objects that the network sees as one
    apart = opened(pieces="split")(frame).labels
    assert apart[16, 16] != apart[48, 48]


@pytest.mark.parametrize(
    "options", [{"thresholds": 0.5}, {"thresholds": (0.4, 0.3)}, {"iterations": 3}, {"solver": "kmeans"}], ids=str
)
def test_what_is_asked_for_is_done(opened, frame, options):
    given, plain = opened(**options, pieces="keep"), opened(auto=False, **options, pieces="keep")
    assert not given.stages.route.auto and given.config == plain.config
    labels = given(frame).labels
    assert np.array_equal(labels, plain(frame).labels) and labels[16, 16] == labels[48, 48]
    assert opened(auto=False).stages.route.auto is False


def test_the_constructor_is_the_merge_alone(opened, frame):
    labels = Segmenter(Colours())(frame).labels
    assert np.array_equal(labels, opened(thresholds=0.5, pieces="keep")(frame).labels)


@pytest.mark.parametrize("warm", [False, True])
def test_identities_keep_their_pieces_and_a_warm_start_has_thresholds(opened, frame, warm):
    usual, plain = opened(), opened(thresholds=0.5 if warm else "auto", pieces="keep")
    clip = [frame, np.roll(frame, 2, axis=1)]
    for found, wanted in zip(usual.stream(clip, warm_start=warm), plain.stream(clip, warm_start=warm), strict=True):
        assert np.array_equal(found.labels, wanted.labels) and found.labels[16, 16] == found.labels[48, 48]
    assert plain.stages.tracked(warm) is plain.stages
    asked = opened(thresholds="auto").stages.tracked(warm)
    assert asked.route.auto and asked.refinement.pieces == "keep"
    alone = next(usual.stream(clip, temporal=False))
    assert np.array_equal(alone.labels, usual(frame).labels)
    tracked = usual.clone().stages.tracked(warm).settings()
    assert (tracked["auto"], tracked["pieces"]) == (not warm, "keep")


def test_tiles_have_fixed_thresholds(opened, frame):
    tiled = in_tiles(opened().stages, (2, 2))
    assert not tiled.route.auto and tiled.refinement.pieces == "unlike" and not tiled.clone().route.auto
    assert in_tiles(opened(thresholds="auto").stages, (2, 2)).route.auto
    for given in (tiled, tiled.clone()):
        assert given.route.config.thresholds == pytest.approx((0.425, 0.425))
    assert in_tiles(opened(thresholds=0.5).stages, (2, 2)).route.config.thresholds == (0.5, 0.5)
    labels = opened()(frame, tiles=(1, 1)).labels
    assert np.array_equal(labels, opened(thresholds=0.425)(frame, tiles=(1, 1)).labels)


def test_levels_have_fixed_thresholds_and_keep_their_pieces(opened, frame):
    usual, plain = opened(), opened(thresholds=0.25, pieces="keep")
    assert np.array_equal(usual.hierarchy(frame, [0.25, 1.0]).labels(0), plain(frame).labels)


def test_the_key_of_the_sidecar():
    spec = Colours().spec
    assert EngineSpec.from_json(spec.to_json(), "x") == spec and json.loads(spec.to_json())["auto"] is True
    without = replace(spec, auto=False)
    assert "auto" not in json.loads(without.to_json()) and EngineSpec.from_json(without.to_json(), "x") == without
    for change, said in (
        ({"auto": "yes"}, "auto: expected true or false, found 'yes'"),
        ({"auto": None}, "auto: expected true or false, found None"),
        ({"head": "labels"}, "auto: expected the head attention and the solver merge"),
        ({"solver": "ncut"}, "auto: expected the head attention and the solver merge"),
    ):
        with pytest.raises(DiffSegError, match=said):
            EngineSpec.from_json(json.dumps(json.loads(spec.to_json()) | change), "x")


@pytest.mark.parametrize(
    ("refinement", "kind"),
    [
        (Refinement(), "UINT8"),
        (Refinement(pieces="split"), "UINT8"),
        (Refinement(pieces="split", min_area=0.002), "INT32"),
        (Refinement(pieces="split", min_area=300), "INT32"),
    ],
    ids=str,
)
def test_the_type_of_tensors_holds_every_piece(opened, refinement, kind):
    assert label_type(opened().config, refinement) == kind


def test_a_request_of_a_service_may_ask_for_what_auto_cannot(opened):
    desk = pytest.importorskip("runtime.serve.desk")
    service = object.__new__(desk.Desk)
    service.segmenter, service._variants, service._workers = opened(), desk.OrderedDict(), [None]
    for options, auto, asked in (
        (desk.Options(refine="snap"), True, False),
        (desk.Options(refine="kmeans"), False, True),
        (desk.Options(thresholds=0.4), False, True),
        (desk.Options(thresholds="auto"), True, True),
        (desk.Options(pieces="keep"), True, False),
    ):
        stages = service.options(options)
        assert (stages.route.auto, stages.asked) == (auto, asked)
        assert stages.refinement.pieces == (options.pieces or "unlike")
    with pytest.raises(DiffSegError, match="pieces: expected one of keep, split, unlike, found 'some'"):
        service.options(desk.Options(pieces="some"))

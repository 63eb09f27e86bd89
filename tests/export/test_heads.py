"""Heads are a registry: a new one is an entry and a module, and what it refuses is refused before any weight loads."""

import importlib.util
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import export.heads.registry as registry
from export.__main__ import app
from export.check.maps import compare_maps
from export.engine import CheckFailed, ExportRequest, check_request, export_engine
from export.parity import check_engine
from runtime import DiffSegError
from runtime.engine.heads import HEADS, Input
from runtime.engine.registry import open_engine


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


POWERS = (1.0, 2.0, 2.0, 3.0)


class Sharpened(torch.nn.Module):
    """The network with its maps raised to powers."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, frame, powers):
        return tuple(maps ** powers[level] for level, maps in enumerate(self.network(frame)))


def dummy_module(powers=POWERS):
    """What somebody who adds a head writes."""
    module = ModuleType("heads_of_tests")

    def compare(path, start, reference):
        engine = start(path)
        roots = [maps ** (1 / power) for maps, power in zip(engine.infer(reference.frames), powers, strict=True)]
        return compare_maps(engine.spec, roots, reference)

    module.assemble = lambda network, spec: Sharpened(network)
    module.compare = compare
    return module


@pytest.fixture
def dummy_head(monkeypatch):
    """The head `sharpened`, in both registries. Its graph takes the powers as an input, one per level."""
    head = registry.HeadGraph("sharpened", "powers of the maps", "heads_of_tests", {"grid": "its maps are not merged"})
    powers = Input("powers", lambda spec: POWERS, "one per level", "--power P,P")
    monkeypatch.setattr(registry, "HEADS", (*registry.HEADS, head))
    monkeypatch.setitem(HEADS, head.name, replace(HEADS["attention"], name=head.name, inputs=(powers,)))
    monkeypatch.setitem(sys.modules, head.module, dummy_module())
    return head


@pytest.mark.slow
def test_a_head_is_an_entry_and_a_module(dummy_head, small_pipeline, small_engine, tmp_path):
    path = tmp_path / "sharpened.onnx"
    request = ExportRequest(model=str(small_pipeline), size=(128, 192), batch=None, head="sharpened")
    report = export_engine(request, path)
    assert [check.output for check in report.checks] == list(report.spec.outputs) and report.spec.head == "sharpened"
    frames = np.random.default_rng(0).integers(0, 256, (1, 128, 192, 3), np.uint8)
    found, maps = open_engine(path, "cpu").infer(frames), open_engine(small_engine, "cpu").infer(frames)
    for sharpened, level, power in zip(found, maps, POWERS, strict=True):
        np.testing.assert_allclose(sharpened, level**power, atol=1e-6)
    assert all(check.passed for check in check_engine(path, str(small_pipeline)))


@pytest.mark.slow
def test_its_own_comparison_decides(dummy_head, small_pipeline, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, dummy_head.module, dummy_module(powers=(1.0, 3.0, 2.0, 3.0)))
    with pytest.raises(CheckFailed, match=r"does not reproduce PyTorch: attention_\d+x\d+ has mean row KL"):
        export_engine(ExportRequest(model=str(small_pipeline), size=(64, 64), head="sharpened"), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_options_that_a_head_refuses(dummy_head, tmp_path):
    result = run("nowhere", "--output", tmp_path / "x", "--head", "sharpened", "--grid", "8")
    assert result.exit_code == 2
    assert "--grid does not go with --head sharpened: its maps are not merged; leave it out" in result.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"head": "labels"}, "--auto does not go with --head labels: thresholds of a graph are numbers"),
        ({"head": "features"}, "--auto does not go with --head features: features are cut"),
        ({"solver": "ncut"}, "--auto: expected the solver merge, found ncut"),
    ],
    ids=str,
)
def test_auto_is_for_maps_that_are_merged(more, said):
    with pytest.raises(DiffSegError, match=said):
        check_request(ExportRequest(model="nowhere", auto=True, **more), check=False)


@pytest.mark.parametrize("head", registry.HEADS, ids=lambda head: head.name)
def test_every_head_defines_what_the_export_calls(head):
    module = registry.load_head(head.name)
    asked = [name for name in vars(registry.HeadModule) if not name.startswith("_")]
    assert asked == ["assemble", "compare"] and all(callable(getattr(module, name)) for name in asked)


def test_an_unknown_head():
    with pytest.raises(DiffSegError, match="--head: expected attention, labels, features, found 'tail'"):
        registry.find_head("tail")


def test_bf16_without_the_backend_that_checks_it(tmp_path, monkeypatch):
    """Before the weights load: the model is not even looked for."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "openvino" else find(name, *rest)
    )
    result = run("nowhere/at/all", "--output", tmp_path / "x", "--precision", "bf16", "--target", "cpu")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "--precision bf16" in result.stderr and "pip install 'diffseg[openvino]'" in result.stderr
    with pytest.raises(DiffSegError, match="openvino"):
        export_engine(ExportRequest(model="nowhere/at/all", precision="bf16"), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []

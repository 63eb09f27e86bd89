"""What is asked of TensorRT's own builder, where it is not installed: by a stand-in that builds nothing."""

from dataclasses import replace
from types import SimpleNamespace as Thing
from unittest.mock import MagicMock

import pytest

from export.plan.build import PlanRequest, build_plan
from export.progress import Phases
from runtime.engine.onnx_file import read_engine
from runtime.engine.plan import read_plan
from tests.export.plan.plans import copy_tiny


class Config(MagicMock):
    """Knows its own timings, and neither damaged ones nor those of another card."""

    def create_timing_cache(self, content):
        self.given.append(content)
        return None if content == b"damaged" else Thing(content=content, serialize=lambda: bytearray(b"kept"))

    def set_timing_cache(self, cache, ignore_mismatch):
        return not ignore_mismatch and cache.content != b"another card's"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Build the tiny engine; the builder and the timing caches that it was given."""
    folder = tmp_path / "a"
    folder.mkdir()
    engine = copy_tiny(folder)
    card = Thing(name="NVIDIA L4", capability="8.9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setattr("export.plan.build.check_request", lambda request: "tensorrt")
    monkeypatch.setattr("export.plan.build._card", lambda device: card)
    monkeypatch.setattr("export.plan.build.check_network", lambda *_: ({}, {}))

    def built(version="10.13.3.9", **options):
        trt, config = MagicMock(__version__=version), Config(given=[])
        trt.ILogger, trt.IProgressMonitor = type("ILogger", (), {"ERROR": 1}), type("IProgressMonitor", (), {})
        trt.NetworkDefinitionCreationFlag = Thing(STRONGLY_TYPED=1) if version < "11" else Thing()
        builder = trt.Builder.return_value
        builder.create_builder_config.return_value = config
        builder.build_serialized_network.return_value = bytearray(b"a plan")
        runtime = trt.Runtime.return_value
        runtime.engine_host_code_allowed = False
        inspector = runtime.deserialize_cuda_engine.return_value.create_engine_inspector.return_value
        inspector.get_engine_information.return_value = '{"Layers": [{"Outputs": [{"DataType": "Float"}]}]}'
        monkeypatch.setattr("export.plan.build.import_flavour", lambda flavour: trt)
        build_plan(engine, folder / "tiny.plan", PlanRequest(**options), Phases())
        return trt, config.given

    built.plan = lambda: read_plan(folder / "tiny.plan")[1]
    return built


def test_timing_cache_is_kept_for_each_version_and_card(build, tmp_path):
    path = tmp_path / "diffseg" / "timing-10.13.3.9-NVIDIA-L4-8.9.cache"
    assert build()[1] == [b""] and path.read_bytes() == b"kept"
    assert build()[1] == [b"kept"]
    assert build(version="11.0.0.1")[1] == [b""]
    for useless in (b"damaged", b"another card's"):
        path.write_bytes(useless)
        assert build()[1] == [useless, b""] and path.read_bytes() == b"kept"
    path.unlink()
    path.mkdir()  # neither read nor written: the plan is built all the same
    assert build()[1] == [b""] and build.plan().gpu == "NVIDIA L4"


@pytest.mark.parametrize(("version", "flags"), [("10.13.3.9", 2), ("11.4.0.106", 0)])
def test_networks_are_strongly_typed(build, version, flags):
    """By a flag in TensorRT 10; in TensorRT 11 there is nothing else."""
    trt, _ = build(version)
    trt.Builder.return_value.create_network.assert_called_once_with(flags)


def test_a_finished_plan_is_not_thrown_away(build, monkeypatch, caplog):
    """What the inspector shows of fused layers is a warning, which the sidecar keeps."""
    monkeypatch.setattr("export.plan.build.read_engine", lambda path: replace(read_engine(path), precision="fp16"))
    build()
    assert "shows no layer of the plan that gives it: {'fp32': 1}" in caplog.messages[0]
    assert build.plan().warnings == (caplog.messages[0].partition(": ")[2],)
    monkeypatch.setattr("export.plan.build.inspect_plan", lambda *_: {}["gone"])
    build()
    assert build.plan().inspected is None and build.plan().warnings == ()


@pytest.mark.parametrize("compatible", [False, True])
def test_plans_are_inspected_also_with_code_of_their_own(build, compatible):
    trt, _ = build(version_compatible=compatible)
    assert trt.Runtime.return_value.engine_host_code_allowed is compatible
    assert build.plan().inspected == {"fp32": 1}

"""ONNX Runtime and OpenVINO run the same engines and find the same segments; the machine decides which is taken."""

import hashlib
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import skimage.data

from export.check.agreement import matched_agreement, says_something
from runtime import DiffSegError, Segmenter
from runtime.engine import registry
from runtime.engine.registry import EMBEDDED, open_engine
from runtime.frames.resize import resize_frame

pytest.importorskip("openvino")
openvino = importlib.import_module("runtime.engine.backends.openvino")
openvino_cache = importlib.import_module("runtime.engine.backends.openvino_cache")
LEAST = {"fp32": 0.995, "bf16": 0.98}


PHOTOGRAPHS = ("astronaut", "coffee", "cat", "rocket")


@pytest.fixture(scope="module")
def photographs():
    """Real photographs, whole, in parts and mirrored, where ONNX Runtime finds segments enough; and its labels.

    One segment that is two in the other precision costs a picture 15 %: a mean of few pictures says little.
    """
    segmenter = Segmenter.open(device="cpu", backend="onnxruntime", options={"threads": 1})
    wholes = [np.ascontiguousarray(getattr(skimage.data, name)()[..., 2::-1]) for name in PHOTOGRAPHS]
    beside, above = ([half for whole in wholes for half in np.array_split(whole, 2, axis=axis)] for axis in (1, 0))
    quarters = [part for half in beside for part in np.array_split(half, 2, axis=0)]
    pictures = [*wholes, *beside, *above, *quarters]
    pictures += [np.ascontiguousarray(picture[:, ::-1]) for picture in pictures]
    found = [(frame, segmenter(frame).labels) for frame in pictures]
    counted = [(frame, labels) for frame, labels in found if says_something(labels)]
    assert len(counted) >= 40
    return counted


@pytest.mark.slow
@pytest.mark.parametrize("precision", LEAST)
def test_openvino_agrees_with_onnxruntime(photographs, precision, tmp_path):
    if precision == "bf16" and not openvino.has_bfloat16():
        pytest.skip("this CPU has no bfloat16 units")
    options = {"threads": 1, "precision": precision, "cache": tmp_path}
    segmenter = Segmenter.open(device="cpu", backend="openvino", options=options)
    assert segmenter.engine.precision == precision
    shares = [matched_agreement(segmenter(frame).labels, labels) for frame, labels in photographs]
    assert np.mean(shares) >= LEAST[precision], shares
    assert list(tmp_path.glob("*.blob")), "the compiled model is kept"


@pytest.mark.slow
def test_a_compiled_model_is_found_again_and_old_ones_go(tmp_path):
    import os

    frame = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), np.uint8)
    first = open_engine(device="cpu", backend="openvino", threads=1, cache=tmp_path).infer(frame)
    (blob,) = tmp_path.glob("*.blob")
    written = blob.stat().st_mtime_ns
    old = tmp_path / "1.blob"
    old.write_bytes(b"x")
    os.utime(old, (0, 0))
    again = open_engine(device="cpu", backend="openvino", threads=1, cache=tmp_path).infer(frame)
    assert list(tmp_path.glob("*.blob")) == [blob] and blob.stat().st_mtime_ns == written
    for before, after in zip(first, again, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.slow
def test_a_cache_that_cannot_be_used_or_is_damaged_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    open_engine(device="cpu", backend="openvino", threads=1)
    (blob,) = openvino_cache.compiled_folder().glob("*.blob")
    whole = blob.read_bytes()
    frame = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), np.uint8)
    expected = open_engine(device="cpu", backend="openvino", threads=1).infer(frame)
    middle = len(whole) // 2  # among the weights
    for damaged in (whole[:1000], b"", whole[:middle] + bytes(64) + whole[middle + 64 :], bytes(len(whole))):
        blob.write_bytes(damaged)
        found = open_engine(device="cpu", backend="openvino", threads=1).infer(frame)
        for before, after in zip(expected, found, strict=True):
            np.testing.assert_array_equal(before, after)
        assert blob.read_bytes()[:32] == hashlib.sha256(blob.read_bytes()[32:]).digest(), "it is made anew"
    blob.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(openvino_cache, "LARGEST_CACHED", 1e6)
        open_engine(device="cpu", backend="openvino", threads=1)
    assert not list(openvino_cache.compiled_folder().glob("*.blob")), (
        "nor are engines that compile as fast as they load"
    )
    with monkeypatch.context() as patch:
        patch.setattr(openvino_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        open_engine(device="cpu", backend="openvino", threads=1)
    assert not list(openvino_cache.compiled_folder().glob("*.blob")), "a full disk is not filled further"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    open_engine(device="cpu", backend="openvino", threads=1)


@pytest.mark.parametrize("channels", [8, 24, 64])
def test_groups_are_summed_alike_by_any_number_of_threads(channels):
    """The channels of a group are no longer shared out among threads; the numbers are those of the graph as it was."""
    import openvino as ov
    from openvino import opset12 as opset

    rng = np.random.default_rng(0)
    scale, bias = rng.normal(size=(2, channels)).astype(np.float32)

    def model():
        frame = opset.parameter((1, channels, 96, 64), np.float32)
        return ov.Model([opset.group_normalization(frame, scale, bias, 8, 1e-6)], [frame])

    def run(graph, threads):
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        return ov.Core().compile_model(graph, "CPU", options)(frame)[0]

    frame = rng.normal(2, 1, (1, channels, 96, 64)).astype(np.float32)
    changed = model()
    openvino._sum_groups_in_order(changed)
    found = run(changed, 1)
    np.testing.assert_array_equal(run(changed, 2), found)
    np.testing.assert_allclose(run(model(), 1), found, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_maps_do_not_depend_on_the_number_of_threads(precision):
    if precision == "bf16" and not openvino.has_bfloat16():
        pytest.skip("the CPU has no bfloat16 units")
    one, two = (
        open_engine(device="cpu", backend="openvino", threads=threads, precision=precision, cache="")
        for threads in (1, 2)
    )
    for name in PHOTOGRAPHS[:3]:
        frame = resize_frame(getattr(skimage.data, name)()[..., ::-1].copy(), one.spec.height, one.spec.width)[None]
        for first, second in zip(one.infer(frame), two.infer(frame), strict=True):
            np.testing.assert_array_equal(first, second)


def test_auto_takes_openvino_where_it_is_faster(monkeypatch):
    for able in (True, False):
        monkeypatch.setattr(openvino, "has_bfloat16", lambda able=able: able)
        assert registry._choose(EMBEDDED, None, "auto").name == ("openvino" if able else "onnxruntime")
        assert registry._choose(EMBEDDED, None, "cpu").name == "onnxruntime"
        assert registry._choose(EMBEDDED, "onnxruntime", "auto").name == "onnxruntime"
    found = importlib.util.find_spec
    for package in ("onnxruntime", "openvino"):  # the one that is there is taken
        other = ({"onnxruntime", "openvino"} - {package}).pop()
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, gone=package: None if name == gone else found(name)
        )
        assert registry._choose(EMBEDDED, None, "cpu").name == other


def test_options_choose_or_are_refused(tmp_path):
    assert registry._choose(EMBEDDED, None, "cpu", {"precision": "fp32"}).name == "openvino"
    refusals = {
        "streams: onnxruntime: no such option; onnxruntime takes threads; openvino takes threads, streams": {
            "backend": "onnxruntime",
            "streams": 2,
        },
        "turbo: .onnx engines: no such option": {"turbo": True},
        "threads: expected a whole number from 1": {"threads": 0},
        "precision: expected fp32 or bf16, found 'int4'": {"precision": "int4"},
        "streams: expected a whole number from 1": {"streams": "many"},
    }
    for message, options in refusals.items():
        with pytest.raises(DiffSegError, match=message):
            open_engine(device="cpu", **options)


@pytest.mark.slow
def test_clones_run_in_streams_of_their_own(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    engine = open_engine(device="cpu", backend="openvino", threads=2, streams=2, cache="")
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, 256, 256, 3), np.uint8)
    expected = [engine.infer(frame)[0] for frame in frames]
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda pair: pair[0].infer(pair[1])[0], zip((engine, engine.clone()), frames, strict=True))
        )
    for theirs, ours in zip(expected, found, strict=True):
        np.testing.assert_array_equal(theirs, ours)


BLACK = '''
import json
import numpy as np
from runtime.engine.base import Engine
from runtime.engine.spec import EngineSpec, sidecar_path

class BlackEngine(Engine):
    """Gives uniform maps, whatever it sees."""

    def __init__(self, path, device, *, depth=1):
        self.spec = EngineSpec.from_json(sidecar_path(path).read_text(), str(path))
        self.device, self.depth = "cpu", depth

    def _infer(self, inputs):
        sizes = [level.height * level.width for level in self.spec.levels]
        return [np.full((len(inputs["frame"]), n, n), 1 / n, np.float32) for n in sizes]

    def clone(self):
        return self
'''


def test_a_backend_is_added_by_an_entry(tmp_path, monkeypatch):
    (tmp_path / "black_backend.py").write_text(BLACK)
    (tmp_path / "e.black").write_bytes(b"x")
    (tmp_path / "e.black.json").write_text(registry.sidecar_path(EMBEDDED).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    entry = registry.Backend("black", ".black", "black_backend", "BlackEngine", "json", ("cpu",), ("depth",))
    monkeypatch.setattr(registry, "BACKENDS", (*registry.BACKENDS, entry))
    segmenter = Segmenter.open(tmp_path / "e.black", "cpu", options={"depth": 3})
    assert segmenter.engine.depth == 3
    assert segmenter(np.zeros((40, 60, 3), np.uint8)).count == 1
    with pytest.raises(DiffSegError, match=r"threads: .black engines: no such option; black takes depth"):
        open_engine(tmp_path / "e.black", threads=2)
    with pytest.raises(DiffSegError, match=r"expected an engine that ends in .onnx, .plan, .black"):
        open_engine(tmp_path / "e.white")

"""Engines that take planar float frames: the runtime converts, and the results are those of the uint8 engine."""

import json

import numpy as np
import pytest

from runtime import DiffSegError, Segmenter
from runtime.engine.backends.tensorrt_library import tensor_shapes
from runtime.engine.base import rebuild_command
from runtime.engine.inputs import FRAME_INPUTS, find_input
from runtime.engine.registry import open_engine
from runtime.engine.spec import EngineSpec
from tests.runtime.colours import write_engine

FLOATS = [name for name, each in FRAME_INPUTS.items() if each.planar]
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    return {name: write_engine(folder / f"{name}.onnx", (8, 12), name) for name in FRAME_INPUTS}


def test_every_pixel_is_converted_exactly():
    pixels = np.arange(256 * 3, dtype=np.uint32).astype(np.uint8).reshape(1, 16, 16, 3)
    assert find_input("uint8-nhwc-bgr").convert(pixels) is pixels
    whole, unit = (find_input(name).convert(pixels) for name in FLOATS)
    for found, brightest in ((whole, 255), (unit, 1)):
        assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.float32, (1, 3, 16, 16), True)
        assert (found.min(), found.max()) == (0, brightest)
    assert np.array_equal(whole[0, 0], pixels[0, :, :, 2]) and np.array_equal(whole[0, 2], pixels[0, :, :, 0])
    # The graph multiplies by 255: what comes out is the pixel, so that every layout gives the same result.
    assert np.array_equal(unit * np.float32(255), whole)
    for name, each in FRAME_INPUTS.items():
        place = np.full(each.shape(1, 16, 16), 7, each.type)
        assert each.convert(pixels, place) is place and np.array_equal(place, each.convert(pixels)), name


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", FLOATS)
def test_the_results_are_those_of_the_uint8_engine(engines, backend, name):
    expected, found = (open_engine(engines[one], "cpu", backend) for one in ("uint8-nhwc-bgr", name))
    assert tensor_shapes(found.spec)["frame"] == (-1, 3, 64, 96) and found.spec.input == name
    assert np.array_equal(expected.infer(FRAMES)[0], found.infer(FRAMES)[0])
    frame = np.ascontiguousarray(FRAMES[0, 4:50, 7:90])
    assert np.array_equal(*(Segmenter(one)(frame).labels for one in (expected, found)))
    with pytest.raises(DiffSegError, match=r"takes frames uint8 \[B, 64, 96, 3\], found float32 \[1, 3, 64, 96\]"):
        found.infer(found.spec.frame_input.convert(FRAMES[:1]))


def test_the_sidecar_says_what_the_graph_takes(engines):
    spec = open_engine(engines[FLOATS[0]], "cpu").spec
    assert "--input float-nchw-rgb " in rebuild_command(spec, "") and str(spec.frame_input).startswith("float32 [B, 3,")
    data = json.loads(spec.to_json())
    assert data["input"] == "float-nchw-rgb" and EngineSpec.from_json(spec.to_json(), "x") == spec
    older = {name: value for name, value in data.items() if name != "input"}  # written before there was a choice
    assert EngineSpec.from_json(json.dumps(older), "x").input == "uint8-nhwc-bgr"
    for wrong in ("float-nhwc", None, 3):
        with pytest.raises(
            DiffSegError, match=r"x lacks or mistypes a field \(input: expected .*export the engine again"
        ):
            EngineSpec.from_json(json.dumps(data | {"input": wrong}), "x")

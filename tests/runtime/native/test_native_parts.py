"""Sums of the aggregated attention, which itself stays on the device; `--threshold auto` is made from them."""

import ctypes

import numpy as np
import pytest
from skimage import data

from runtime import Segmenter, native
from runtime.merge.aggregate import aggregate_attention
from runtime.merge.likeness import profile_cells
from runtime.merge.parts import choose_parts, find_parts
from runtime.native.library import Library, Memory
from runtime.native.maps import DeviceMaps
from runtime.pyramid.config import MergeConfig
from tests.runtime.merge.plain import random_pyramid, reference
from tests.runtime.native.test_native import STATUS, core_for, good_frames, handle, place  # noqa: F401 - a fixture

GRIDS = [(16, 24), (8, 12)]
CAT = data.chelsea()[..., ::-1].copy()


def in_blocks(rows, shape, cells):
    tall, wide = shape[0] // cells[0], shape[1] // cells[1]
    blocks = rows.reshape(*rows.shape[:-1], cells[0], tall, cells[1], wide).sum(axis=(-3, -1))
    return blocks.reshape(*rows.shape[:-1], -1)


def two_frames():
    pyramid = random_pyramid(np.random.default_rng(1), GRIDS)
    return [np.stack([level, level[::-1]]) for level in pyramid]


@pytest.mark.parametrize("cells", [(4, 8), (16, 24), (1, 1)], ids=str)
def test_sums_in_blocks(library, cells):
    core = core_for(library, MergeConfig((0.3, 0.2), 5), GRIDS, batch=2)
    found = core(two_frames(), 2, (16, 24), details=True, blocks=cells)
    for sums, rows in ((found.attention_blocks, found.attention), (found.proposal_blocks, found.proposals)):
        np.testing.assert_allclose(sums, in_blocks(rows, GRIDS[0], cells), rtol=1e-5)
    assert 1 < found.segments[0] < 25 and (found.proposal_blocks[0, found.segments[0] :] == 0).all()


def test_the_same_attention_again(library):
    """Other thresholds, without the maps: what a whole call gives."""
    core = core_for(library, MergeConfig((0.3, 0.2), 5), GRIDS, batch=2)
    core(two_frames(), 2, (16, 24))
    again = core(None, 2, (16, 24), details=True, blocks=(2, 2), thresholds=(0.1, 0.05))
    whole = core(two_frames(), 2, (16, 24), details=True, blocks=(2, 2), thresholds=(0.1, 0.05))
    assert again.attention_blocks is None
    for name in ("labels", "segments", "proposals", "attention", "proposal_blocks"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    core([level[:1] for level in two_frames()], 1, (16, 24))
    with pytest.raises(ValueError, match="again: expected at most the 1 frames of the last call, found a batch of 2"):
        core(None, 2, (16, 24))


def test_means_of_parts(library):
    """Of any parts, as scattered as can be, also one without queries; the same bits each time."""
    core = core_for(library, MergeConfig((0.3, 0.2), 5), GRIDS, batch=2)
    attention = core(two_frames(), 2, (16, 24), details=True).attention.astype(float)
    for count in (1, 7, 25):
        part = np.random.default_rng(count).integers(0, count, (2, 384))
        part[part == 3] = 0
        members = (part[:, None] == np.arange(count)[:, None]).astype(float)
        expected = members @ attention / np.maximum(members.sum(-1, keepdims=True), 1)
        found = core.part_means(part, count)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)
        np.testing.assert_array_equal(core.part_means(part, count), found)
        np.testing.assert_array_equal(core.part_means(part[:1], count), found[:1])
    assert (found[:, 3] == 0).all()


def test_what_a_call_for_means_must_be(library, handle):  # noqa: F811 - a fixture
    c, part, means = library.c, Memory(library, 0, 2 * 64 * 4), Memory(library, 0, 2 * 16 * 64 * 4)
    good = (handle, 2, part.pointer, 16, means.pointer, None)

    def status(**changes):
        names = ("handle", "batch", "part", "parts", "means", "stream")
        return c.diffseg_part_means(*(changes.get(name, value) for name, value in zip(names, good, strict=True)))

    part.upload(np.zeros((2, 64), np.int32))
    assert status() == STATUS["batch"] and b"expected diffseg_run to be called before" in c.diffseg_last_error()
    library.call("run", handle, ctypes.byref(good_frames(library)), None)
    assert status() == 0
    assert status(handle=None) == status(part=None) == status(means=None) == STATUS["null"]
    assert status(batch=0) == status(batch=3) == STATUS["batch"]
    assert status(parts=0) == status(parts=17) == STATUS["parts"]


@pytest.mark.parametrize("wrong", [-1, 5, 2**31 - 1, -(2**31)])
def test_a_query_in_no_part_is_one_error(library, wrong):
    """It is told once, with the frame; the rest is right."""
    core = core_for(library, MergeConfig((0.3, 0.2), 5), GRIDS, batch=2)
    attention = core(two_frames(), 2, (16, 24), details=True).attention
    part = np.arange(2 * 384).reshape(2, 384) % 5
    part[1, 383] = wrong
    with pytest.raises(ValueError, match="frame 1 of the batch: part: expected numbers from 0 and below `parts`"):
        core.part_means(part, 5)
    made = np.empty((2, 5, 384), np.float32)
    core._memory["means"].download(made)
    expected = [attention[0][part[0] == 1].mean(axis=0), attention[1][part[1] == 4].mean(axis=0)]
    np.testing.assert_allclose([made[0, 1], made[1, 4]], expected, rtol=1e-5)
    core.wait(0)  # told once
    with pytest.raises(ValueError, match=r"part: expected \[B, 384\], found \[384\]"):
        core.part_means(part[0], 5)


def test_means_of_a_frame_that_is_invalid(library, handle):  # noqa: F811 - a fixture
    maps = np.full((2, 64, 64), 1 / 64, np.float32)
    maps[1, 5, 3] = np.nan
    changed, part, means = place(library, maps), place(library, np.zeros((2, 64), np.int32)), np.empty((2, 1, 64), "f4")
    library.call("run", handle, ctypes.byref(good_frames(library, maps=changed.pointer)), None)
    memory = Memory(library, 0, means.nbytes)
    library.call("part_means", handle, 2, part.pointer, 1, memory.pointer, None)
    assert library.c.diffseg_check(handle, None, None) == STATUS["maps"]
    memory.download(means)
    np.testing.assert_allclose(means[0], 1 / 64, rtol=1e-6)
    assert (means[1] == 0).all()


class Counted:
    """Calls of the library, and the bytes that come from the device."""

    def __init__(self, monkeypatch):
        self.names, self.bytes, self.maps_read = [], 0, 0
        call, download = Library.call, Memory.download

        def counted(library, name, *rest):
            self.names.append(name)
            self.maps_read += name == "run" and not rest[1]._obj.again
            call(library, name, *rest)

        def downloaded(memory, array, stream=0):
            self.bytes += array.nbytes
            download(memory, array, stream)

        monkeypatch.setattr(Library, "call", counted)
        monkeypatch.setattr(Memory, "download", downloaded)


def device_parts(library, pyramid, config, grids, layers=None):
    maps = DeviceMaps(pyramid, config, profile_cells(grids[0]), grids, layers, "cuda", library)
    return choose_parts(maps, grids[0], config.thresholds)


def assert_same_parts(found, expected):
    assert len(found.proposals) == len(expected.proposals)
    np.testing.assert_allclose(found.proposals, expected.proposals, rtol=1e-4, atol=1e-8)
    assert np.mean(found.scores.argmax(axis=0) != expected.scores.argmax(axis=0)) <= 0.001


@pytest.mark.parametrize("weights", ["proportional", (0, 1), "per-tensor"])
def test_parts_on_the_device_are_those_on_the_host(library, weights):
    rng = np.random.default_rng(0)
    y, x = np.divmod(np.arange(384), 24)
    part = (y >= 8) * 2 + (x >= 12)
    maps = np.exp(3.0 * (part[:, None] == part) + rng.normal(0, 0.4, (384, 384)))
    pyramid = [maps, random_pyramid(rng, GRIDS[1:])[0]]
    config = MergeConfig((0.6, 0.3), 8, weights=weights)
    expected = find_parts(pyramid, config, grids=GRIDS, layers=(3, 1))
    assert_same_parts(device_parts(library, pyramid, config, GRIDS, (3, 1)), expected)
    assert len(expected.proposals) > 1


@pytest.mark.parametrize(
    ("built", "index"),
    [
        pytest.param("cpu", 0, marks=pytest.mark.slow),
        *(pytest.param("cpu", index, marks=pytest.mark.proof) for index in (1, 2)),
        *(pytest.param("cuda", index, marks=pytest.mark.gpu) for index in range(3)),
    ],
)
def test_parts_of_the_vectors(request, built, index, monkeypatch):
    """At 64×64, where the attention is 67 MB, less than 8 MB come to the host."""
    library = request.getfixturevalue(f"{built}_library")
    pyramid, vector = reference(index)
    config = MergeConfig(tuple(vector["thresholds"]), int(vector["grid"]))
    grids = [(64, 64), (32, 32), (16, 16), (8, 8)]
    expected = find_parts(pyramid, config)
    counted = Counted(monkeypatch)
    assert_same_parts(device_parts(library, pyramid, config, grids), expected)
    assert counted.maps_read == 1 and counted.bytes < 8e6


def on_a_gpu(engine, library, monkeypatch):
    """The engine as if its maps were on a GPU: in the memory of a library that is built for the CPU."""
    infer = engine.infer
    monkeypatch.setattr(engine, "on_device", True)
    monkeypatch.setattr(engine, "device", "cuda")
    monkeypatch.setattr(engine, "infer_on_device", lambda frames: [place(library, level) for level in infer(frames)])
    monkeypatch.setattr("runtime.native.load", lambda *_: library)
    return engine


@pytest.mark.usefixtures("embedded_stays_open")
def test_auto_of_the_embedded_engine(cpu_library, monkeypatch):
    """The labels are the host's. One handle, one aggregation, and the sums come to the host."""
    here = Segmenter.open(device="cpu", thresholds="auto", grid=8, pieces="keep")
    expected = here(CAT)
    engine = on_a_gpu(Segmenter.open(device="cpu").engine, cpu_library, monkeypatch)
    there = Segmenter(engine, here.config, auto=True)
    native.release()
    counted = Counted(monkeypatch)
    found = there(CAT)
    assert type(there.stages.route).__name__ == "DeviceRoute"
    assert found.count == expected.count > 3
    assert np.mean(found.labels != expected.labels) <= 0.001
    n, parts, rounds = 1024, counted.names.count("part_means"), counted.names.count("run")
    assert counted.names.count("create") == counted.maps_read == 1
    assert parts - rounds in (0, 1)  # one more where a segment has several pieces
    sums = 256 * 4  # of one map
    least = n * sums + rounds * 64 * sums
    assert least < counted.bytes < least + parts * (64 * n * 4 + 100) < 4 * n * n


def test_maps_that_are_no_probabilities(cpu_library):
    bad = np.where(np.arange(64) == 3, np.nan, np.full((64, 64), 1 / 64, np.float32))
    with pytest.raises(ValueError, match="NaN"):
        device_parts(cpu_library, [bad], MergeConfig((0.6, 0.3), 4), [(8, 8)])


def test_whole_attention_of_device_maps(cpu_library, monkeypatch):
    """What a user who asks for details is given; the maps are not read again."""
    pyramid, counted = random_pyramid(np.random.default_rng(1), GRIDS), Counted(monkeypatch)
    maps = DeviceMaps(pyramid, MergeConfig((0.6, 0.3), 4), (2, 2), GRIDS, None, "cuda", cpu_library)
    maps.merged((0.6, 0.3))
    np.testing.assert_allclose(maps.whole(), aggregate_attention(pyramid, grids=GRIDS), rtol=1e-5)
    assert counted.maps_read == 1

"""The native merge core gives the labels of `runtime.merge`. Its CPU build runs the GPU kernels' own source."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest

from runtime import native
from runtime.gpu.arrays import DeviceArray
from runtime.merge.aggregate import aggregate_attention
from runtime.merge.proposals import merge_attention
from runtime.merge.segment import segment_attention
from runtime.native.core import Core, native_config
from runtime.native.library import STAGES, Frames, Library, Memory
from runtime.pyramid.config import MergeConfig
from runtime.pyramid.weights import resolution_ratios
from tests.runtime.merge.plain import GRIDS, random_pyramid, reference

ALLOWED = 0.001  # of the pixels
STATUS = {"null": 1, "abi": 2, "grid": 3, "anchors": 4, "threshold": 5, "weight": 6, "type": 7, "batch": 8, "size": 9}
STATUS |= {"workspace": 10, "device": 11, "maps": 14, "parts": 15}


def core_for(library, config, grids, **options):
    return Core(library, config, resolution_ratios(config.weights, grids), grids, **options)


def place(library, array, dtype=None):
    """An array where the library's kernels read."""
    memory = Memory(library, 0, array.nbytes)
    memory.upload(np.ascontiguousarray(array))
    return DeviceArray(memory.pointer, array.shape, dtype or str(array.dtype), 0, memory)


def to_bfloat16(array):
    """The upper half of float32, rounded to nearest; as uint16, and as the float32 it stands for."""
    bits = array.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return bits.astype(np.uint16), (bits << 16).astype(np.uint32).view(np.float32)


SLOW = pytest.mark.slow


@SLOW
@pytest.mark.parametrize(
    ("library", "index"),
    [
        *(("cpu", index) for index in range(3)),
        *(pytest.param("cuda", index, marks=pytest.mark.gpu) for index in range(3)),
        ("tensor", 0),
        # 20 s each, emulated.
        *(pytest.param("tensor", index, marks=pytest.mark.proof) for index in (1, 2)),
    ],
    indirect=["library"],
)
def test_reference_labels(library, index):
    pyramid, vector = reference(index)
    config = MergeConfig(tuple(vector["thresholds"]), int(vector["grid"]))
    grids = [(64, 64), (32, 32), (16, 16), (8, 8)]
    found = core_for(library, config, grids)(pyramid, 1, vector["labels"].shape, details=True)
    assert np.mean(found.labels[0] != vector["labels"]) <= ALLOWED
    np.testing.assert_allclose(found.attention[0, [0, 1000, 4095]], vector["aggregate_rows"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("grids", [*GRIDS, [(5, 9)]], ids=str)
def test_odd_shapes(library, grids, seed):
    rng = np.random.default_rng(seed)
    pyramid = random_pyramid(rng, grids, sharpness=rng.uniform(0.5, 6))
    grid = int(rng.integers(2, min(grids[0]) + 1))
    for threshold in (0.05, 0.3, 1.1):
        config = MergeConfig((threshold,) * 3, grid)
        expected = segment_attention(pyramid, config, size=(37, 53), grids=grids)
        found = native.segment(pyramid, config, (37, 53), grids, library=library)
        assert found.dtype == np.int32
        assert np.mean(found != expected) <= ALLOWED


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 24), (131, 200)])
def test_labels_of_any_size(library, size):
    grids = [(16, 24), (8, 12)]
    pyramid = random_pyramid(np.random.default_rng(3), grids)
    config = MergeConfig((0.2,) * 2, 8)
    expected = segment_attention(pyramid, config, size=size, grids=grids)
    found = native.segment(pyramid, config, size, grids, library=library)
    assert np.mean(found != expected) <= ALLOWED


def test_proposals_and_attention(library):
    grids = [(16, 24), (8, 12), (4, 6)]
    pyramid = random_pyramid(np.random.default_rng(1), grids)
    config = MergeConfig((0.3, 0.2, 0.2), 12)
    found = core_for(library, config, grids)(pyramid, 1, (16, 24), details=True)
    attention = aggregate_attention(pyramid, grids=grids)
    proposals = merge_attention(attention, config, grids[0])
    np.testing.assert_allclose(found.attention[0], attention, rtol=1e-5, atol=1e-10)
    assert found.segments[0] == len(proposals) > 3
    np.testing.assert_allclose(found.proposals[0, : len(proposals)], proposals, rtol=1e-5, atol=1e-9)
    assert (found.proposals[0, len(proposals) :] == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_maps_at_any_address(library, dtype):
    """Pixels are read 16 bytes at a time only where the maps allow it."""
    pyramid = [level.astype(dtype) for level in random_pyramid(np.random.default_rng(1), [(16, 16), (8, 8)])]
    core = core_for(library, MergeConfig((0.3,) * 2, 5), [(16, 16), (8, 8)], dtype=dtype)
    expected = core(pyramid, 1, (16, 16), details=True)
    shifted = place(library, np.concatenate([np.zeros(1, dtype), pyramid[0].ravel()]))
    moved = replace(shifted, pointer=shifted.pointer + pyramid[0].itemsize, shape=pyramid[0].shape)
    found = core([moved, place(library, pyramid[1])], 1, (16, 16), details=True)
    np.testing.assert_allclose(found.attention, expected.attention, rtol=1e-6)
    np.testing.assert_array_equal(found.labels, expected.labels)


@SLOW
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_maps_larger_than_the_threads_keep(cpu_library, dtype):
    """Up to 4096 pixels of a map are kept between their two uses, the others are read again."""
    grids = [(68, 64), (34, 32)]
    pyramid = [level.astype(dtype) for level in random_pyramid(np.random.default_rng(1), grids)]
    found = core_for(cpu_library, MergeConfig((0.3,), 2), grids, dtype=dtype)(pyramid, 1, (68, 64), details=True)
    np.testing.assert_allclose(found.attention[0], aggregate_attention(pyramid, grids=grids), rtol=1e-4, atol=1e-10)


def test_thresholds_of_a_call(cpu_library, monkeypatch):
    """One handle serves them all."""
    pyramid = random_pyramid(np.random.default_rng(1), [(16, 16), (8, 8)])
    calls, call = [], Library.call
    monkeypatch.setattr(Library, "call", lambda self, name, *rest: (calls.append(name), call(self, name, *rest)))
    native.release()
    for threshold in (0.05, 0.3, 1.1):
        config = MergeConfig((threshold,) * 2, 8)
        expected = segment_attention(pyramid, config, size=(32, 32))
        assert np.mean(native.segment(pyramid, config, (32, 32), library=cpu_library) != expected) <= ALLOWED
    assert calls.count("create") == 1


def test_every_anchor_its_own_proposal(library):
    """P = 256: nothing merges, and an anchor is its own member whatever its products round to."""
    grids = [(20, 18), (10, 9)]
    pyramid = random_pyramid(np.random.default_rng(2), grids)
    config = MergeConfig((1e-30,) * 3, 16)
    found = core_for(library, config, grids)(pyramid, 1, (80, 72))
    assert found.segments[0] == 256
    expected = segment_attention(pyramid, config, size=(80, 72), grids=grids)
    assert np.mean(found.labels[0] != expected) <= ALLOWED


def test_more_labels_than_a_byte(library):
    pyramid = random_pyramid(np.random.default_rng(2), [(18, 18)])
    config = MergeConfig((1e-30,), 18)
    found = core_for(library, config, [(18, 18)])(pyramid, 1, (18, 18))
    assert found.segments[0] == 324
    expected = segment_attention(pyramid, config, size=(18, 18))
    assert expected.max() > 255
    assert np.mean(found.labels[0] != expected) <= ALLOWED


def test_everything_merges(library):
    """P = 1."""
    pyramid = random_pyramid(np.random.default_rng(2), [(16, 16), (8, 8)])
    config = MergeConfig((1e6,) * 3, 16)
    found = core_for(library, config, [(16, 16), (8, 8)])(pyramid, 1, (16, 16), details=True)
    assert found.segments[0] == 1
    assert (found.labels == 0).all()
    np.testing.assert_allclose(found.proposals[0, 0], aggregate_attention(pyramid).mean(0), rtol=1e-4)


def test_one_hot_maps_stay_apart(library):
    maps = np.eye(64, dtype=np.float32)
    for threshold, count in ((27.5, 16), (27.7, 1)):
        found = core_for(library, MergeConfig((threshold,) * 2, 4), [(8, 8)])([maps], 1, (8, 8))
        assert found.segments[0] == count


def test_uniform_maps_give_one_segment(library):
    pyramid = [np.full((64, 64), 1 / 64), np.full((16, 16), 1 / 16)]
    assert (native.segment(pyramid, MergeConfig(grid=8), (9, 7), library=library) == 0).all()


def test_zeros_and_denormals(library):
    maps = np.random.default_rng(3).random((64, 64)) ** 40
    maps[:, ::3] = 0
    maps[:, 1] = 1e-40
    config = MergeConfig((5.0, 5.0), 8)
    expected = segment_attention([maps.astype(np.float32)], config, size=(16, 16))
    found = native.segment([maps.astype(np.float32)], config, (16, 16), library=library)
    np.testing.assert_array_equal(found, expected)


def test_ties_go_to_the_first(library):
    """Proposals that are equal everywhere: two halves, each with many anchors, and no later iteration."""
    side = np.arange(64) % 8 // 4
    maps = np.where(side[:, None] == side, 1.0, 0.1).astype(np.float32)
    config = MergeConfig((0.05,), 4)
    found = core_for(library, config, [(8, 8)])([maps], 1, (8, 8))
    assert found.segments[0] == 16
    np.testing.assert_array_equal(found.labels[0], np.where(side, 2, 0).reshape(8, 8))


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 2, 0), (0, 1, 3), "per-tensor"])
def test_weights(library, weights):
    grids = [(16, 16), (8, 8), (4, 4)]
    pyramid = random_pyramid(np.random.default_rng(0), grids)
    config = MergeConfig((0.2,) * 2, 8, weights=weights)
    expected = segment_attention(pyramid, config, size=(32, 32), layers=(5, 3, 1))
    found = native.segment(pyramid, config, (32, 32), layers=(5, 3, 1), library=library)
    assert np.mean(found != expected) <= ALLOWED


def test_half_precision(library):
    """float16 from the host, float16 and bfloat16 from the device: equal to the merge of the same values."""
    grids = [(16, 16), (8, 8)]
    pyramid = random_pyramid(np.random.default_rng(4), grids)
    config = MergeConfig((0.2,) * 2, 8)
    half = [level.astype(np.float16) for level in pyramid]
    expected = segment_attention(half, config, size=(32, 32))
    assert np.mean(native.segment(half, config, (32, 32), library=library) != expected) <= ALLOWED
    placed = [place(library, level) for level in half]
    found = core_for(library, config, grids, dtype="float16")(placed, 1, (32, 32))
    assert np.mean(found.labels[0] != expected) <= ALLOWED
    stored, values = zip(*map(to_bfloat16, pyramid), strict=True)
    placed = [place(library, level, "bfloat16") for level in stored]
    found = core_for(library, config, grids, dtype="bfloat16")(placed, 1, (32, 32))
    assert np.mean(found.labels[0] != segment_attention(values, config, size=(32, 32))) <= ALLOWED


def test_half_precision_denormals(library):
    values = np.array([0, 1e-7, 5e-8, 3e-5, 6.2e-5, 1.0, 65504.0], np.float16)
    maps = np.ones((64, 64), np.float16)
    maps[:, : len(values)] = values
    found = core_for(library, MergeConfig(grid=4), [(8, 8)], dtype="float16")([maps], 1, (8, 8), details=True)
    np.testing.assert_allclose(found.attention[0], aggregate_attention([maps]), rtol=1e-5, atol=1e-12)


def test_batch_equals_single_frames(library):
    grids = [(16, 16), (8, 8), (4, 4)]
    pyramids = [random_pyramid(np.random.default_rng(seed), grids) for seed in range(3)]
    batch = [np.stack(level) for level in zip(*pyramids, strict=True)]
    config = MergeConfig((0.2, 0.2), 8)
    labels = native.segment(batch, config, (32, 24), library=library)
    assert labels.shape == (3, 32, 24)
    for index, pyramid in enumerate(pyramids):
        np.testing.assert_array_equal(labels[index], native.segment(pyramid, config, (32, 24), library=library))
        assert np.mean(labels[index] != segment_attention(pyramid, config, size=(32, 24))) <= ALLOWED


@pytest.mark.slow
def test_sums_in_parts(cpu_library):
    """How many parts a sum has follows from the card. It moves no label, and the same card gives the same bits."""
    grids = [(32, 32), (16, 16)]
    pyramid = random_pyramid(np.random.default_rng(5), grids, sharpness=4)
    config = MergeConfig((0.3, 0.2), 12)
    processors = ctypes.c_int.in_dll(cpu_library.c, "diffseg_cpu_multiprocessors")
    usual, found = processors.value, []
    try:
        for count in (1, 16, 16, 132):
            processors.value = count
            found.append(core_for(cpu_library, config, grids)(pyramid, 1, (64, 64), proposals=True))
    finally:
        processors.value = usual
    np.testing.assert_array_equal(found[1].proposals, found[2].proposals)
    assert (found[0].proposals != found[3].proposals).any()  # there were parts
    for each in found:
        np.testing.assert_allclose(each.proposals, found[0].proposals, rtol=1e-5)
        np.testing.assert_array_equal(each.labels, found[0].labels)
    expected = segment_attention(pyramid, config, size=(64, 64))
    assert found[0].segments[0] > 3 and np.mean(found[0].labels[0] != expected) <= ALLOWED


def test_profile(library):
    pyramid = random_pyramid(np.random.default_rng(0), [(16, 16)])
    runs = core_for(library, MergeConfig(grid=8), [(16, 16)]).profile(pyramid, 1, (16, 16), repeat=2)
    assert [list(run) for run in runs] == [list(STAGES)] * 2
    assert all(value >= 0 for run in runs for value in run.values())


# Bad input: a status with text, never a crash.


def good_config(**changes):
    config = native_config(MergeConfig(grid=4), (2, 1), [(8, 8), (4, 4)], batch=2)
    for name, value in changes.items():
        if name == "weights":
            config.weights[0] = value
        elif name == "grids":
            for index, pair in enumerate(value):
                config.grids[index][:] = pair
        else:
            setattr(config, name, value)
    return config


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"struct_size": 8}, "abi"),
        ({"abi_version": 99}, "abi"),
        ({"device": -1}, "device"),
        ({"max_batch": 0}, "batch"),
        ({"max_batch": 5000}, "batch"),
        ({"levels": 0}, "grid"),
        ({"levels": 9}, "grid"),
        ({"grids": [(8, 0)]}, "grid"),
        ({"grids": [(100_000, 100_000)]}, "grid"),
        ({"grids": [(4, 4), (8, 8)]}, "grid"),
        ({"grids": [(8, 8), (8, 8)]}, "grid"),
        ({"input_type": 7}, "type"),
        ({"anchors": 1}, "anchors"),
        ({"anchors": 9}, "anchors"),
        ({"iterations": 0}, "threshold"),
        ({"iterations": 17}, "threshold"),
        ({"weights": -1.0}, "weight"),
        ({"weights": float("inf")}, "weight"),
    ],
    ids=str,
)
def test_bad_config(library, changes, status):
    handle, size = ctypes.c_void_p(1), ctypes.c_size_t()
    config = good_config(**changes)
    assert library.c.diffseg_create(ctypes.byref(config), None, 0, ctypes.byref(handle)) == STATUS[status]
    assert not handle.value
    assert library.c.diffseg_last_error()
    assert library.c.diffseg_workspace_size(ctypes.byref(config), ctypes.byref(size)) == STATUS[status]


@pytest.fixture
def handle(library):
    made = ctypes.c_void_p()
    library.call("create", ctypes.byref(good_config()), None, 0, ctypes.byref(made))
    yield made
    library.c.diffseg_destroy(made)


def good_frames(library, **changes):
    maps = [place(library, np.full((2, n, n), 1 / n, np.float32)) for n in (64, 16)]
    labels = place(library, np.full((2, 6, 5), 0xAB, np.uint8))
    frames = Frames(batch=2, height=6, width=5, labels=labels.pointer)
    frames.maps[:2] = [level.pointer for level in maps]
    frames.thresholds[:3] = (1.0,) * 3
    frames.owners = (maps, labels)
    for name, value in changes.items():
        if name in ("maps", "thresholds"):
            getattr(frames, name)[0] = value
        else:
            setattr(frames, name, value)
    return frames


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"struct_size": 8}, "abi"),
        ({"abi_version": 0}, "abi"),
        ({"batch": 0}, "batch"),
        ({"batch": 3}, "batch"),
        ({"maps": None}, "null"),
        ({"labels": None}, "null"),
        ({"height": 0}, "size"),
        ({"width": 40_000}, "size"),
        ({"label_type": 2}, "type"),
        ({"thresholds": 0.0}, "threshold"),
        ({"thresholds": -1.0}, "threshold"),
        ({"thresholds": float("nan")}, "threshold"),
        ({"again": 1}, "batch"),
        ({"again": 2}, "batch"),
        ({"attention_blocks": 8}, "size"),
        ({"proposal_blocks": 8, "blocks": (2, 3)}, "size"),
        ({"proposal_blocks": 8, "blocks": (9, 2)}, "size"),
    ],
    ids=str,
)
def test_bad_frames(library, handle, changes, status):
    frames = good_frames(library, **changes)
    assert library.c.diffseg_run(handle, ctypes.byref(frames), None) == STATUS[status]
    assert library.c.diffseg_last_error()
    times = (ctypes.c_float * len(STAGES))()
    assert library.c.diffseg_profile(handle, ctypes.byref(frames), None, times) == STATUS[status]


def test_null_pointers(library, handle):
    c, config, frames = library.c, ctypes.byref(good_config()), ctypes.byref(good_frames(library))
    made, size = ctypes.byref(ctypes.c_void_p()), ctypes.byref(ctypes.c_size_t())
    assert c.diffseg_workspace_size(None, size) == c.diffseg_workspace_size(config, None) == STATUS["null"]
    assert c.diffseg_create(None, None, 0, made) == c.diffseg_create(config, None, 0, None) == STATUS["null"]
    assert c.diffseg_run(None, frames, None) == c.diffseg_run(handle, None, None) == STATUS["null"]
    assert c.diffseg_check(None, None, None) == c.diffseg_profile(handle, frames, None, None) == STATUS["null"]
    assert c.diffseg_allocate(0, 8, None) == c.diffseg_device_count(None) == STATUS["null"]
    assert c.diffseg_upload(0, None, None, 8, None) == c.diffseg_download(0, None, None, 8, None) == STATUS["null"]
    c.diffseg_destroy(None)
    c.diffseg_free(0, None)


def test_bytes_hold_256_labels(library):
    made = ctypes.c_void_p()
    library.call("create", ctypes.byref(good_config(grids=[(20, 20)], anchors=17)), None, 0, ctypes.byref(made))
    frames = good_frames(library)
    assert library.c.diffseg_run(made, ctypes.byref(frames), None) == STATUS["type"]
    library.c.diffseg_destroy(made)


def test_workspace_of_the_caller(library):
    config, size, made = good_config(), ctypes.c_size_t(), ctypes.c_void_p()
    library.call("workspace_size", ctypes.byref(config), ctypes.byref(size))
    memory = Memory(library, 0, size.value + 256)
    start = (memory.pointer + 255) // 256 * 256
    create = library.c.diffseg_create
    assert create(ctypes.byref(config), start, size.value - 1, ctypes.byref(made)) == STATUS["workspace"]
    assert create(ctypes.byref(config), start + 4, size.value, ctypes.byref(made)) == STATUS["workspace"]
    assert create(ctypes.byref(config), start, size.value, ctypes.byref(made)) == 0
    frames = good_frames(library)
    library.call("run", made, ctypes.byref(frames), None)
    library.call("check", made, None, None)
    library.c.diffseg_destroy(made)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-3, 0.0, 1e-41], ids=str)
def test_bad_maps(library, handle, value, level):
    """Labels are 0 and the check says which frame; the other frame of the batch is unharmed."""
    frames = good_frames(library)
    n = (64, 16)[level]
    maps = np.full((2, n, n), 1 / n, np.float32)
    maps[1, 5] = value if value in (0, 1e-41) else maps[1, 5]  # a row of zeros, or so near that none sums to 1
    maps[1, 5, 3] = value
    changed, segments = place(library, maps), place(library, np.full(2, -7, np.int32))
    frames.maps[level], frames.segments = changed.pointer, segments.pointer
    library.call("run", handle, ctypes.byref(frames), None)
    frame = ctypes.c_int32(-1)
    assert library.c.diffseg_check(handle, None, ctypes.byref(frame)) == STATUS["maps"]
    assert frame.value == 1
    labels, counts = np.empty((2, 6, 5), np.uint8), np.empty(2, np.int32)
    frames.owners[1].owner.download(labels)
    segments.owner.download(counts)
    assert (labels == 0).all()
    assert counts.tolist() == [1, 0]
    assert library.c.diffseg_check(handle, None, None) == 0  # told once


def test_python_says_what_is_wrong(library):
    good = np.full((64, 64), 1 / 64, np.float32)
    bad = np.where(np.arange(64) == 3, np.nan, good)
    for pyramid, config, message in (
        ([bad], MergeConfig(grid=4), "NaN"),
        ([good[:10]], MergeConfig(grid=4), r"expected maps \[n, n\]"),
        ([good], MergeConfig(grid=9), "expected 2 to 8 anchors"),
        ([good], MergeConfig(grid=4, solver="kmeans"), "solver: expected 'merge' on device"),
        ([good], MergeConfig((1.0,) * 17, 4), "thresholds: .* 16 at most, found 17"),
    ):
        with pytest.raises(ValueError, match=message):
            native.segment(pyramid, config, (8, 8), library=library)


def test_every_status_has_text(library):
    texts = [library.c.diffseg_status_text(status) for status in range(17)]
    assert len(set(texts)) == 17
    assert texts[16] == library.c.diffseg_status_text(-3) == b"unknown status"

"""The runner against stand-ins for the driver and TensorRT: in which order it calls, and what it gives back when."""

import ctypes
import gc
import threading
from dataclasses import replace

import numpy as np
import pytest

from runtime import DiffSegError, Segmenter
from runtime.engine.registry import open_engine
from runtime.gpu import driver as cuda
from runtime.gpu.arrays import DeviceArray, to_host

FRAMES = np.arange(256 * 256 * 3, dtype=np.uint32).astype(np.uint8).reshape(1, 256, 256, 3)
UPLOAD = ["wait for event", "after", "upload", "mark", "after", "copy", "mark"]


def work(driver):
    """What was called, but for making things."""
    return [word for word in driver.notes() if not word.startswith(("alloc", "stream", "event", "create"))]


def test_first_call_captures_and_later_ones_launch(tensorrt, driver, tmp_path):
    engine = open_engine(tensorrt.prepare(tmp_path), "cuda")
    assert (engine.device, tensorrt.content) == ("cuda:0", b"a plan")
    assert work(driver) == []
    maps = engine.infer(FRAMES)
    assert [level.shape for level in maps] == [(1, 64, 64), (1, 16, 16)]
    capture = ["wait", "begin capture", "execute", "end capture", "instantiate", "destroy graph"]
    assert work(driver) == [*UPLOAD, "execute", *capture, "download", "download", "wait"]
    for _ in range(3):
        engine.infer(FRAMES)
        assert work(driver) == [*UPLOAD, "launch", "download", "download", "wait"]


def test_nothing_is_allocated_after_the_first_call(tensorrt, driver, tmp_path):
    engine = open_engine(tensorrt.prepare(tmp_path), "auto")
    engine.infer(FRAMES)
    living = driver.living()
    for _ in range(5):
        engine.infer(FRAMES)
        engine.infer_on_device(FRAMES)
    assert driver.living() == living


def test_everything_is_given_back_contexts_before_engines(tensorrt, driver, tmp_path):
    engine = open_engine(tensorrt.prepare(tmp_path), "cuda")
    clone = engine.clone()
    for each in (engine, clone):
        each.infer(FRAMES)
    driver.notes()
    del engine, each
    gc.collect()
    assert [word for word in driver.notes() if word.endswith("gone")] == ["context gone"]  # the clone lives on
    clone.infer(FRAMES)
    driver.notes()
    del clone
    gc.collect()
    ends = [word for word in driver.notes() if word.endswith("gone") or word == "destroy executable"]
    assert ends == ["destroy executable", "context gone", "engine gone", "runtime gone"]
    assert driver.living() == 0


def test_clone_is_made_on_the_thread_that_runs_it(tensorrt, driver, tmp_path):
    """Which has no GPU of its own yet: TensorRT would take the first."""
    engine, found = open_engine(tensorrt.prepare(tmp_path), "cuda"), []
    thread = threading.Thread(target=lambda: found.extend(engine.clone().infer(FRAMES)))
    thread.start()
    thread.join()
    assert [level.shape for level in found] == [(1, 64, 64), (1, 16, 16)]


def test_giving_back_leaves_the_thread_its_gpu(driver):
    """The garbage collector may come between two calls of another engine, on another GPU."""
    buffer = cuda.Buffer(cuda.gpu(0), 8)
    driver.leave_context()
    driver.notes()
    buffer.close()
    assert driver.notes() == ["free"] and not driver.has_context()


def test_frames_reach_the_address_of_the_input(tensorrt, driver, tmp_path):
    engine = open_engine(tensorrt.prepare(tmp_path), "cuda")
    engine.infer(FRAMES)
    addresses = tensorrt.engine.contexts[0].addresses
    assert set(addresses) == {"frame", "attention_8x8", "attention_4x4"} and len(set(addresses.values())) == 3
    assert ctypes.string_at(addresses["frame"], FRAMES.nbytes) == FRAMES.tobytes()


@pytest.mark.parametrize("ahead", [False, True])
def test_frames_of_another_layout_are_converted_on_their_way(tensorrt, driver, tmp_path, ahead):
    path = tensorrt.prepare(tmp_path, input="float-nchw-rgb-unit")
    engine = open_engine(path, "cuda")
    if ahead:
        engine.prefetch(FRAMES)
        driver.notes()
    engine.infer(FRAMES)
    assert driver.notes().count("upload") == (not ahead)
    expected = engine.spec.frame_input.convert(FRAMES)
    found = ctypes.string_at(tensorrt.engine.contexts[0].addresses["frame"], expected.nbytes)
    assert np.array_equal(np.frombuffer(found, np.float32).reshape(1, 3, 256, 256), expected)


def test_capture_refused(tensorrt, driver, tmp_path):
    """Then every call executes, and it is tried once."""
    ctypes.c_int.in_dll(driver, "refuse_capture").value = 1
    engine = open_engine(tensorrt.prepare(tmp_path), "cuda")
    engine.infer(FRAMES)
    capture = ["wait", "begin capture", "execute", "capture refused"]
    assert work(driver) == [*UPLOAD, "execute", *capture, "download", "download", "wait"]
    engine.infer(FRAMES)
    assert work(driver) == [*UPLOAD, "execute", "download", "download", "wait"]


def test_the_head_labels_is_not_captured(tensorrt, driver, tmp_path):
    """The host reads the length of its loops, so a capture would fail in the middle of a run."""
    engine = open_engine(tensorrt.prepare(tmp_path, head="labels"), "cuda")
    labels, segments = engine.infer(FRAMES, (0.5, 0.4, 0.3))
    assert (labels.dtype, labels.shape, segments.dtype) == (np.uint8, (1, 256, 256), np.int32)
    assert work(driver) == [*UPLOAD, "upload", "execute", "download", "download", "wait"]
    thresholds = tensorrt.engine.contexts[0].addresses["thresholds"]
    assert np.frombuffer(ctypes.string_at(thresholds, 12), np.float32).tolist() == pytest.approx([0.5, 0.4, 0.3])


def test_dynamic_batch_sets_its_shape_and_is_not_captured(tensorrt, driver, tmp_path):
    engine = open_engine(tensorrt.prepare(tmp_path, batch=None), "cuda")
    two = np.repeat(FRAMES, 2, axis=0)
    assert engine.infer(two)[0].shape == (2, 64, 64)
    end = ["execute", "download", "download", "wait"]
    assert work(driver) == [*UPLOAD, "shape", *end]
    engine.infer(two)
    assert work(driver) == [*UPLOAD, *end]
    engine.infer(FRAMES)
    assert work(driver) == [*UPLOAD, "shape", *end]
    with pytest.raises(DiffSegError, match=r"takes 1 to 3 frames per call, found 4; .*unet.onnx .*--profile 1,1,4'"):
        engine.infer(np.repeat(FRAMES, 4, axis=0))


def test_prefetched_frames_are_uploaded_once(tensorrt, driver, tmp_path):
    engine = open_engine(tensorrt.prepare(tmp_path), "cuda")
    engine.infer(FRAMES)
    driver.notes()
    following = FRAMES + 1
    engine.prefetch(following)
    assert work(driver) == ["wait for event", "after", "upload", "mark"]
    engine.infer(following[0][None])  # another array of the same memory
    assert work(driver) == ["after", "copy", "mark", "launch", "download", "download", "wait"]
    frame = tensorrt.engine.contexts[0].addresses["frame"]
    assert ctypes.string_at(frame, FRAMES.nbytes) == following.tobytes()
    engine.infer(following)  # what was fetched is used up
    assert work(driver) == [*UPLOAD, "launch", "download", "download", "wait"]
    engine.prefetch(following)
    engine.infer(FRAMES)  # others than were announced
    assert ctypes.string_at(frame, FRAMES.nbytes) == FRAMES.tobytes()
    following += 1  # announced again after a change: what was fetched before it does not count
    engine.prefetch(following)
    engine.infer(following)
    assert ctypes.string_at(frame, FRAMES.nbytes) == following.tobytes()
    turned = following[:, ::-1, ::-1]
    engine.prefetch(turned[:, ::-1, ::-1].copy())
    engine.infer(np.ascontiguousarray(turned))
    assert ctypes.string_at(frame, FRAMES.nbytes) == turned.tobytes()


def test_frames_fetched_by_another_thread_ahead_of_the_network(tensorrt, driver, tmp_path):
    """As a video's resizing does: as many as its queue holds, and in the network none is uploaded any more."""
    stages = Segmenter.open(tensorrt.prepare(tmp_path, head="labels"), "cuda").stages
    frames = [stages.gather([stages.resize(FRAMES[0] + number)]) for number in range(6)]
    stages.network(frames[0], 1)
    frame, seen = tensorrt.engine.contexts[0].addresses["frame"], []
    driver.notes()

    def fetch(numbers):
        thread = threading.Thread(target=lambda: [stages.prefetch(frames[number]) for number in numbers])
        thread.start()
        thread.join()

    fetch((1, 2, 3))
    assert driver.notes().count("upload") == 3
    for number in (1, 2, 3):
        stages.network(frames[number], 1)
        assert driver.notes().count("upload") == 1  # of the thresholds
        seen.append(ctypes.string_at(frame, FRAMES.nbytes))
        fetch([number + 2] if number > 1 else [])
        driver.notes()
    for number in (4, 5):
        stages.network(frames[number], 1)
        assert driver.notes().count("upload") == 1
        seen.append(ctypes.string_at(frame, FRAMES.nbytes))
    assert seen == [each.tobytes() for each in frames[1:]]


def test_maps_stay_on_the_device(tensorrt, driver, tmp_path):
    engine = open_engine(tensorrt.prepare(tmp_path), "cuda")
    maps = engine.infer_on_device(FRAMES)
    assert "download" not in driver.notes()
    addresses = tensorrt.engine.contexts[0].addresses
    assert all(isinstance(level, DeviceArray) and level.stream for level in maps)
    assert [level.pointer for level in maps] == [addresses["attention_8x8"], addresses["attention_4x4"]]
    del engine
    gc.collect()
    assert "free" not in driver.notes()  # maps keep their memory
    del maps
    gc.collect()
    assert driver.living() == 0


def test_segmenter_merges_where_the_maps_lie(tensorrt, driver, tmp_path, cpu_library, monkeypatch):
    """The library beside the engine is the one that is used where that is asked for; only labels leave the device."""
    import shutil

    from runtime import native
    from runtime.native.build import NAME

    path = tensorrt.prepare(tmp_path)
    shutil.copy(cpu_library.path, tmp_path / NAME)
    monkeypatch.setenv("DIFFSEG_LIBRARY", "beside")
    segmenter = Segmenter.open(path, "cuda", grid=4)
    assert segmenter.stages.route._library.path == tmp_path / NAME
    calls = []
    run = native.run
    monkeypatch.setattr(
        native, "run", lambda maps, *rest, **more: calls.append((maps, more)) or run(maps, *rest, **more)
    )

    def fill(addresses):
        for name, n in (("attention_8x8", 64), ("attention_4x4", 16)):
            np.ctypeslib.as_array((ctypes.c_float * (n * n)).from_address(addresses[name]))[:] = 1 / n
        return addresses

    addresses = fill(tensorrt.engine.contexts[0].addresses)
    driver.notes()
    result = segmenter(FRAMES[0])
    assert (result.count, result.labels.shape, result.proposals) == (1, (256, 256), None)
    assert "download" not in driver.notes()
    assert [level.pointer for level in calls[0][0]] == [addresses["attention_8x8"], addresses["attention_4x4"]]
    assert calls[0][0][0].shape == (64, 64) and set(result.milliseconds) == {
        *("resize", "network", "merge", "labels", "total")
    }
    detailed = segmenter(FRAMES[0], details=True)
    assert detailed.attention.shape == (64, 64) and detailed.proposals.shape == (1, 8, 8)
    assert segmenter(FRAMES[0], proposals=True).attention is None
    calls.clear()
    chooses = Segmenter.open(path, "cuda", grid=4, thresholds="auto")
    fill(tensorrt.engine.contexts[-1].addresses)
    assert chooses(FRAMES[0]).count == 1
    assert calls == []  # its attention stays on the device, too
    with pytest.raises(
        DiffSegError, match=r"solver: expected merge on device cuda:0, .*found kmeans; use --device cpu"
    ):
        Segmenter.open(path, "cuda", grid=4, refine="kmeans")
    native.release()


def test_merge_core_that_cannot_be_had(tensorrt, driver, tmp_path, monkeypatch, caplog):
    """Asked for a GPU by name it is an error; with auto the CPU merges, and it is said."""
    from runtime import native

    def absent(*_):
        raise DiffSegError("no CUDA compiler")

    monkeypatch.setattr(native, "load", absent)
    path = tensorrt.prepare(tmp_path)
    with pytest.raises(DiffSegError, match="no CUDA compiler"):
        Segmenter.open(path, "cuda:0", grid=4)
    segmenter = Segmenter.open(path, grid=4)
    assert caplog.messages == ["merging on the CPU: no CUDA compiler"]
    with pytest.raises(
        DiffSegError, match="no probabilities: attention_8x8"
    ):  # the stand-in's maps are zeros: they came to the host
        segmenter(FRAMES[0])


def test_memory_and_failures_are_named(tensorrt, driver, tmp_path):
    path = tensorrt.prepare(tmp_path)
    engine = open_engine(path, "cuda")
    tensorrt.engine.contexts[0].works = False
    tensorrt.logger.log(1, "enqueueV3: out of\nmemory")
    with pytest.raises(
        DiffSegError, match=r"unet.plan failed: TensorRT did not start the run \(enqueueV3: out of memory\)"
    ):
        engine.infer(FRAMES)
    del engine
    ctypes.c_int.in_dll(driver, "refuse_memory").value = 1
    with pytest.raises(
        DiffSegError, match=r"cuMemAlloc_v2 failed with CUDA_ERROR_OUT_OF_MEMORY \(2\); close what else"
    ):
        open_engine(path, "cuda")
    gc.collect()
    assert driver.living() == 0


def test_where_a_pointer_is(driver):
    from runtime.gpu.driver import device_of, gpu

    assert device_of(1 << 40) == 0
    ctypes.c_int.in_dll(driver, "pointer_device").value = -1  # of no GPU
    assert device_of(1 << 40) is None
    card = gpu(0)
    driver.leave_context()
    driver.notes()
    card.wait()
    assert driver.notes() == ["wait for all"] and not driver.has_context()


def test_batches_of_different_frames_are_uploaded_ahead(tensorrt, driver, tmp_path):
    """A plan of two frames per call: the stream fills its batches, and each is uploaded once, before the network."""
    segmenter = Segmenter.open(tensorrt.prepare(tmp_path, head="labels", batch=2), "cuda")
    frames = [FRAMES[0] + number for number in range(6)]
    driver.notes()
    assert len(list(segmenter.map(frames))) == 6
    notes = driver.notes()
    assert notes.count("execute") == 3
    assert notes.count("upload") == 2 * 3  # the frames and the thresholds of every call, and nothing twice


def test_an_array_comes_to_the_host(driver):
    maps = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = DeviceArray(maps.ctypes.data, (2, 3), "float32", 0, maps)
    found = to_host(there)
    assert "download" in driver.notes() and np.array_equal(found, maps) and not np.shares_memory(found, maps)
    with pytest.raises(DiffSegError, match="expected an array float32 on the GPU, found float16"):
        to_host(replace(there, dtype="float16"))

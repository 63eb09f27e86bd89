"""Stages overlap, keep order, hold back, and never hang: not on errors, not on a stop, not on a silent source."""

import itertools
import threading

import pytest

from runtime.stream.pipeline import Pipeline, Stage


def noop(job):
    pass


def test_stages_work_at_the_same_time_and_keep_order():
    """Each of three stages waits for the other two to be at work on other jobs: one after the other would hang."""
    meeting = threading.Barrier(3)
    seen = {name: [] for name in "abc"}
    offsets = {"a": 2, "b": 1, "c": 0}  # when `a` has job n, `b` has n−1 and `c` n−2

    def stage(name):
        def work(job):
            seen[name].append(job)
            if 2 <= job + 2 - offsets[name] < 8:  # the first and last jobs have nobody to meet
                meeting.wait(timeout=20)

        return Stage(name, work)

    assert list(Pipeline(range(8), [stage(name) for name in "abc"])) == list(range(8))
    assert all(jobs == list(range(8)) for jobs in seen.values())


def test_jobs_wait_in_bounded_numbers():
    made = []
    held = threading.Event()

    def source():
        for number in range(100):
            made.append(number)
            if number == 5:  # two in each queue, one in the stage that waits, one in hand
                held.set()
            yield number

    def wait(job):
        if job == 0:
            held.wait(20)
            threading.Event().wait(0.2)  # time to run away, for a source that is not held back
            most.append(len(made))

    most = []
    assert list(Pipeline(source(), [Stage("a", noop), Stage("b", wait)])) == list(range(100))
    assert most[0] <= 8


@pytest.mark.parametrize("place", ["decode", "a", "b", "c"])
def test_an_error_surfaces_as_it_is_and_what_was_ahead_is_finished(place):
    broken = RuntimeError("the disk has gone")

    def source():
        for number in range(1000):
            if place == "decode" and number == 20:
                raise broken
            yield number

    def stage(name):
        def work(job):
            if name == place and job == 20:
                raise broken

        return Stage(name, work)

    pipeline = Pipeline(source(), [stage(name) for name in "abc"])
    done = []
    with pytest.raises(RuntimeError) as caught:
        for job in pipeline:
            done.append(job)
    assert caught.value is broken and done == list(range(20))
    for thread in pipeline._threads:
        thread.join(5)
        assert not thread.is_alive()


def test_a_stop_drops_what_is_early_and_finishes_what_is_late():
    late, release = [], threading.Event()

    def slow(job):
        late.append(job)
        if len(late) == 3:
            release.wait(20)

    pipeline = Pipeline(itertools.count(), [Stage("early", noop), Stage("late", slow, finishes=True)])
    done = []
    for job in pipeline:
        done.append(job)
        if len(done) == 2:
            pipeline.stop()
            release.set()
    assert done == late == list(range(len(done))) and 2 <= len(done) <= 7


def test_a_source_that_says_nothing_any_more_does_not_hold_up_a_stop():
    silent = threading.Event()

    def source():
        yield 0
        silent.wait()

    pipeline = Pipeline(source(), [Stage("a", noop)])
    for _ in pipeline:
        pipeline.stop()
    silent.set()


def test_of_a_live_source_the_newest_are_kept():
    started, gate = threading.Event(), threading.Event()

    def source():
        yield 0
        started.wait(20)
        yield from range(1, 50)
        gate.set()

    def slow(job):
        started.set()
        gate.wait(20)

    pipeline = Pipeline(source(), [Stage("slow", slow)], live=True)
    done = list(pipeline)
    assert done == [0, 48, 49] and pipeline.dropped == 47


def test_several_threads_of_a_stage_keep_the_order():
    """The first of three jobs at work ends last; nothing overtakes it."""
    meeting = threading.Barrier(3)
    ended = []

    def work(job):
        if job < 3:
            meeting.wait(20)  # all three are at work at once
        threading.Event().wait(0.05 if job % 3 == 0 else 0)
        ended.append(job)

    assert list(Pipeline(range(12), [Stage("a", noop), Stage("b", work, threads=3)])) == list(range(12))
    assert ended != sorted(ended)


@pytest.mark.parametrize("threads", [1, 4])
def test_what_was_ahead_of_an_error_in_a_stage_of_several_threads_is_finished(threads):
    slow = threading.Event()

    def work(job):
        if job == 5:
            slow.set()
            raise RuntimeError("broken")
        if job == 4 and threads > 1:
            slow.wait(20)  # still at work when the next one breaks

    pipeline = Pipeline(range(100), [Stage("a", work, threads=threads), Stage("b", noop)])
    done = []
    with pytest.raises(RuntimeError, match="broken"):
        for job in pipeline:
            done.append(job)
    assert done == [0, 1, 2, 3, 4]
    for thread in pipeline._threads:
        thread.join(5)
        assert not thread.is_alive()


def test_jobs_are_gathered_into_lists_and_scattered_again():
    """Lists of three that count; what does not count travels along; the last list is short."""
    lists = []
    stages = [
        Stage("gather", lambda jobs: lists.append(list(jobs)), gathers=3, counts=lambda job: job % 2 == 0),
        Stage("network", lambda jobs: None, scatters=True),
        Stage("after", noop),
    ]
    assert list(Pipeline(range(13), stages)) == list(range(13))
    assert lists == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10], [11, 12]]


def test_jobs_that_do_not_count_do_not_wait_for_ever():
    """Of a thousand jobs none counts: they leave in lists of bounded length."""
    lengths = []
    stages = [
        Stage("gather", lambda jobs: lengths.append(len(jobs)), gathers=2, counts=lambda job: False),
        Stage("network", lambda jobs: None, scatters=True),
    ]
    assert list(Pipeline(range(1000), stages)) == list(range(1000))
    assert max(lengths) <= 8


def test_nobody_waits_for_a_full_list_of_a_live_source():
    came = threading.Event()

    def source():
        yield 0
        assert came.wait(20)  # the next frame comes only when this one is through
        yield 1

    stages = [
        Stage("gather", lambda jobs: None, gathers=4),
        Stage("network", lambda jobs: came.set(), scatters=True),
    ]
    assert list(Pipeline(source(), stages, live=True)) == [0, 1]

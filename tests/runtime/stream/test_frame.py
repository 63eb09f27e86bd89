"""Frames of one stream with stages of their own, and frames that nobody waits for any more."""

import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest

from runtime.refine.refinement import Refinement
from runtime.segmenter import Segmenter
from runtime.stages import Stages
from runtime.stream.frame import Job
from runtime.stream.job import Stream
from tests.runtime.clips import StandIn, draw


class Bright(StandIn):
    """As its base, and the threshold decides what is bright. It takes any number of frames."""

    def prefetch(self, frames):
        """A batch that was announced may be divided."""

    def _infer(self, inputs):
        self.calls += len(inputs["frame"])
        grey = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in inputs["frame"]]
        return [np.array(grey) > 128 * inputs["thresholds"][0], np.full(len(grey), 2, np.int32)]


@pytest.fixture
def stages():
    return Segmenter(Bright(batch=None)).stages


def test_each_frame_is_segmented_by_its_own_stages(stages, monkeypatch):
    monkeypatch.setattr(stages, "frames", 4)
    route = stages.route
    other = Stages(type(route)(route.engine, replace(route.config, thresholds=(1.6,))), Refinement())
    jobs = [Job(frame=draw(number), stages=other if number % 3 == 1 else None) for number in range(12)]
    found = list(Stream(stages).pipeline(iter(jobs), writes=False))
    for number, job in enumerate(found):
        assert job.error is None
        assert np.array_equal(job.result.labels, (job.stages or stages)(draw(number)).labels), number


@pytest.mark.parametrize("when", ["before", "within the network"])
def test_what_nobody_waits_for_is_left_out(stages, when):
    jobs = [Job(frame=draw(number)) for number in range(6)]
    begun, network = threading.Event(), stages.network

    def held(batch, count):
        if not begun.is_set():
            begun.set()
            for job in jobs:
                job.unwanted = job is not jobs[-1]
        return network(batch, count)

    stages.network = held
    if when == "before":
        for job in jobs[:-1]:
            job.unwanted = True
    found = list(Stream(stages).pipeline(iter(jobs), writes=False))
    assert [job.error is None for job in found] == [False] * 5 + [True]
    assert "nobody waits" in str(found[0].error) and found[-1].result is not None
    assert stages.route.engine.calls == (1 if when == "before" else 2)

"""Identities on drawn moving scenes, with segments taken from the masks: no engine's faults, no engine's time."""

import numpy as np
import pytest

from runtime.errors import DiffSegError
from runtime.result import Result
from runtime.segmenter import Segmenter
from runtime.track.tracker import Tracker, TrackerConfig
from tools.scenes.draw import Piece
from tools.scenes.moving import Mover, MovingScene, draw_moving_scene
from tools.scenes.textures import random_texture

pytestmark = pytest.mark.usefixtures("embedded_stays_open")

SIZE = (144, 192)


def piece(outline, centre, colour, family="noise", seed=0):
    return Piece(outline, centre, random_texture(np.random.default_rng(seed), family), colour)


def disc(radius, centre, colour):
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return piece((radius * np.stack([np.cos(angle), np.sin(angle)], 1)).astype(np.float32), centre, colour, "dots", 3)


def bar(half, centre, colour):
    corners = np.array([[-half, -200], [half, -200], [half, 200], [-half, 200]], np.float32)
    return piece(corners, centre, colour, "grating", 5)


GROUND = Mover(piece(None, (96, 72), (110, 140, 100)))


def segmented(mask, rng=None):
    """A result for a mask: its regions, numbered at random, with attention inside each of them."""
    present = np.unique(mask)
    order = present if rng is None else rng.permutation(present)
    labels = np.zeros(mask.shape, np.int32)
    proposals = np.empty((len(order), 18, 24), np.float32)
    for number, region in enumerate(order):
        labels[mask == region] = number
        inside = (mask == region).reshape(18, 8, 24, 8).mean((1, 3))
        proposals[number] = (inside + 0.02) / (inside + 0.02).sum()
    return Result(labels, len(order), {"total": 1.0}, proposals)


def owner(result, mask, region):
    """The identity that most of a region's pixels have; None where the region is hardly in sight."""
    inside = mask == region
    return int(np.bincount(result.labels[inside]).argmax()) if inside.sum() > 60 else None


def test_identities_stay_whatever_the_engine_numbers_them():
    scene = draw_moving_scene(1, SIZE, split="development")
    rng, tracker = np.random.default_rng(0), Tracker()
    seen, right = {}, []
    for time in range(20):
        mask = scene.mask(time)
        result = tracker.update(scene.frame(time), segmented(mask, rng))
        assert result.labels.dtype == np.int32 and result.labels.shape == SIZE
        assert np.array_equal(np.unique(result.labels), result.identities) and result.count == len(result.identities)
        assert len(result.proposals) == result.count and "track" in result.milliseconds
        for region in np.unique(mask):
            identity = owner(result, mask, region)
            if identity is not None:
                right.append(seen.setdefault(region, identity) == identity)
    assert len(set(seen.values())) == len(seen) and np.mean(right) > 0.97


@pytest.mark.parametrize("maps", [True, False], ids=["proposals", "labels alone"])
def test_an_identity_survives_an_occlusion(maps):
    disc_path = Mover(disc(16, (40, 72), (50, 60, 200)), velocity=(4, 0))
    scene = MovingScene((GROUND, disc_path, Mover(bar(22, (100, 72), (200, 180, 60)))), SIZE)
    tracker, found = Tracker(), []
    for time in range(33):
        mask = scene.mask(time)
        result = segmented(mask)
        if not maps:
            result = Result(result.labels, result.count, result.milliseconds)
        found.append(owner(tracker.update(scene.frame(time), result), mask, 1))
    assert None in found[8:24], "the disc is hidden for some frames"
    assert found[-1] == found[0] is not None


def test_a_thing_enters_at_once_and_leaves():
    scene = MovingScene((GROUND, Mover(disc(20, (-24, 72), (50, 60, 200)), velocity=(8, 0))), SIZE)
    tracker, counts, lag = Tracker(), [], []
    for time in range(34):
        mask = scene.mask(time)
        result = tracker.update(scene.frame(time), segmented(mask))
        counts.append(result.count)
        if (mask == 1).sum() > 400:
            lag.append((result.labels[mask == 1] != owner(result, mask, 0)).mean())
    assert counts[0] == 1 and counts[-1] == 1 and max(counts) == 2
    assert np.median(lag) > 0.97 and min(lag) > 0.75


def test_a_cut_begins_anew_and_a_flash_does_not():
    first, second = draw_moving_scene(1, SIZE, split="development"), draw_moving_scene(7, SIZE, split="development")
    tracker = Tracker()
    before = tracker.update(first.frame(0), segmented(first.mask(0)))
    flash = np.clip(first.frame(1).astype(int) + 60, 0, 255).astype(np.uint8)
    bright = tracker.update(flash, segmented(first.mask(1)))
    assert not tracker.cut and np.isin(before.identities, bright.identities).mean() > 0.8
    after = tracker.update(second.frame(0), segmented(second.mask(0)))
    assert tracker.cut and after.identities.min() > bright.identities.max()
    assert (after.labels == second.mask(0) + after.identities[0]).mean() > 0.99
    tracker.update(second.frame(1), segmented(second.mask(1)))
    # On a frame that no engine sees: what is carried over means nothing, and the next update starts afresh.
    tracker.propagate(first.frame(4))
    assert tracker.cut
    again = tracker.update(first.frame(5), segmented(first.mask(5)))
    assert again.identities.min() > after.identities.max()


def test_a_flicker_is_not_shown():
    """One frame in three two regions are merged, by an engine that cannot tell them apart: nobody sees it."""
    scene = MovingScene((GROUND, Mover(disc(30, (60, 72), (50, 60, 200)), velocity=(1, 0))), SIZE)
    tracker, shown = Tracker(), []
    for time in range(15):
        mask = scene.mask(time)
        seen = mask if time % 3 else np.zeros_like(mask)
        seen = mask if time == 0 else seen
        result = tracker.update(scene.frame(time), segmented(seen))
        shown.append(((result.labels == 1) == (mask == 1)).mean())
    assert min(shown) > 0.98


def test_propagated_labels_move_with_the_picture():
    scene = MovingScene((GROUND, Mover(disc(24, (60, 72), (50, 60, 200)), velocity=(4, 0))), SIZE)
    tracker = Tracker()
    first = tracker.update(scene.frame(0), segmented(scene.mask(0)))
    for time in range(1, 5):
        result = tracker.propagate(scene.frame(time))
    assert np.array_equal(result.identities, first.identities)
    moved, still = ((labels == scene.mask(4)).mean() for labels in (result.labels, first.labels))
    assert moved > 0.96 and 1 - moved < 0.5 * (1 - still)
    with pytest.raises(DiffSegError, match="144x192, found 20x20"):
        tracker.propagate(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(DiffSegError, match="no frame yet"):
        Tracker().propagate(scene.frame(0))


def test_numbers_are_given_again_only_when_all_have_been_given(monkeypatch):
    """Label pictures hold no more than so many: a camera that runs for days must not wrap round silently."""
    monkeypatch.setattr("runtime.track.tracker.NUMBERS", 6)
    rng = np.random.default_rng(0)
    tracker, seen = Tracker(TrackerConfig(patience=0)), []
    for _ in range(6):  # a cut each: two new identities
        frame = rng.integers(0, 256, (36, 48, 1), np.uint8).repeat(3, axis=2)
        labels = np.repeat([0, 1], 24)[None].repeat(36, axis=0).astype(np.int32)
        tracker.reset()
        seen.append(tracker.update(frame, Result(labels, 2, {})).identities.tolist())
    assert seen == [[0, 1], [2, 3], [4, 5]] * 2
    scene = MovingScene((GROUND, Mover(disc(14, (60, 72), (50, 60, 200)))), SIZE)
    for time in range(40):  # one of two comes and goes
        mask = scene.mask(time) * (time % 4 < 2)
        result = tracker.update(scene.frame(time), segmented(mask))
        assert result.identities.max() < 6 and len(set(result.identities.tolist())) == result.count
    with pytest.raises(DiffSegError, match="at most 6 at a time"):
        Tracker().update(frame, Result(np.arange(7, dtype=np.int32).repeat(7 * 48).reshape(49, 48)[:49], 7, {}))


@pytest.mark.parametrize("bad", [{"memory": 1.0}, {"memory": -0.1}, {"patience": -1}, {"side": 8}])
def test_a_bad_parameter_is_named(bad):
    with pytest.raises(DiffSegError, match=next(iter(bad))):
        TrackerConfig(**bad)


def test_tiny_frames_are_tracked():
    tracker = Tracker()
    for _ in range(2):
        result = tracker.update(np.zeros((1, 3, 3), np.uint8), Result(np.zeros((1, 3), np.int32), 1, {}))
    assert result.labels.tolist() == [[0, 0, 0]]


@pytest.fixture(scope="module")
def segmenter():
    """A frame by itself is segmented as in a clip."""
    return Segmenter.open(device="cpu", thresholds=0.5, pieces="keep")


@pytest.mark.slow
def test_stream(segmenter):
    frames = list(draw_moving_scene(2, (96, 128), split="development").frames(4))
    assert list(segmenter.stream([])) == []
    assert len(list(segmenter.stream(frames[:1]))) == 1
    single = [segmenter(frame) for frame in frames]
    plain = list(segmenter.stream(iter(frames), temporal=False))
    assert all(np.array_equal(a.labels, b.labels) and a.identities is None for a, b in zip(plain, single, strict=True))
    tracked = list(segmenter.stream(frames))
    assert (tracked[0].labels == single[0].labels).mean() > 0.98
    assert len(tracked) == 4 and tracked[3].mask(tracked[3].identities[0]).any()
    assert [s.index for s in tracked[3].segments] == tracked[3].identities.tolist()
    with pytest.raises(IndexError, match="identity in sight"):
        tracked[3].mask(9999)
    skipping = list(segmenter.stream(frames, every=3))
    assert ["network" in result.milliseconds for result in skipping] == [True, False, False, True]
    with pytest.raises(DiffSegError, match="every"):
        segmenter.stream(frames, every=0)
    with pytest.raises(DiffSegError, match="NoneType"):
        list(segmenter.stream([None], every=3))


def test_another_size_in_mid_stream_begins_anew(segmenter):
    frames = list(draw_moving_scene(2, (96, 128), split="development").frames(2))
    small = [frame[::2, ::2].copy() for frame in frames]
    results = list(segmenter.stream([*frames, *small], every=2))
    assert [result.labels.shape for result in results] == [(96, 128)] * 2 + [(48, 64)] * 2
    assert results[2].identities.min() > results[1].identities.max()


def test_a_warm_start_finds_what_a_coarse_grid_misses():
    """Three tokens of their own between the anchors of a coarse grid: only the proposals of before lead there."""
    from runtime.merge.proposals import propose
    from runtime.merge.suppress import suppress
    from runtime.pyramid.config import MergeConfig

    region = np.zeros((12, 12), int)
    region[:, 7:] = 1
    region[4, 3:6] = 2  # anchors of a 3x3 grid lie at 1, 6 and 11
    same = region.reshape(-1, 1) == region.reshape(1, -1)
    maps = np.where(same, 1.0, 0.01).astype(np.float32)
    maps /= maps.sum(axis=1, keepdims=True)
    seeds = propose([maps], MergeConfig((0.5, 0.5), 12))
    coarse = MergeConfig((0.5, 0.5), 3)

    def labels(proposals):
        return suppress(proposals, (12, 12), (12, 12))

    assert len(propose([maps], coarse)) == 2 and len(seeds) == 3
    nowhere = np.full((1, 144), 1e-9, np.float32)  # a thing that has gone: no map is near it
    nowhere[0, 0] = 1
    warm = propose([maps], coarse, seeds=np.concatenate([nowhere, seeds]))
    assert len(warm) == 3 and np.allclose(warm.sum(axis=1), 1, atol=1e-5)
    assert all(len(np.unique(labels(warm)[region == index])) == 1 for index in range(3))
    with pytest.raises(ValueError, match="seeds: expected"):
        propose([maps], coarse, seeds=seeds[:, :100])


def test_missing_scipy_is_one_line(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(DiffSegError, match=r'pip install "diffseg\[video\]"'):
        Tracker()

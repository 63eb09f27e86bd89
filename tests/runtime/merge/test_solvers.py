"""Solvers, and how one is added."""

import sys
import types

import numpy as np
import pytest

from runtime import DiffSegError
from runtime.merge.aggregate import aggregate_attention
from runtime.merge.proposals import merge_attention, propose
from runtime.merge.registry import SOLVERS, Solver
from runtime.merge.segment import segment_attention
from runtime.merge.solvers.kmeans import kmeans
from runtime.pyramid.config import MergeConfig
from runtime.refine.refinement import split_refine
from runtime.routes.host import HostRoute
from runtime.segmenter import Segmenter
from tests.runtime.merge.plain import random_pyramid


def test_kmeans_gives_cluster_means():
    pyramid = random_pyramid(np.random.default_rng(0), [(16, 16), (8, 8)])
    maps = aggregate_attention(pyramid)
    plain = merge_attention(maps, MergeConfig((0.3,) * 3, 8), (16, 16))
    centres = merge_attention(maps, MergeConfig((0.3,) * 3, 8, solver="kmeans"), (16, 16))
    assert centres.shape == plain.shape
    assert len(centres) > 1

    def inertia(points):
        return ((maps[:, None] - points) ** 2).sum(-1).min(1).sum()

    assert inertia(centres) <= inertia(plain)
    expected = plain.astype(np.float64)
    for _ in range(10):
        nearest = ((maps[:, None] - expected) ** 2).sum(-1).argmin(1)
        expected = np.array(
            [maps[nearest == k].mean(0) if (nearest == k).any() else expected[k] for k in range(len(expected))]
        )
    np.testing.assert_allclose(centres, expected, rtol=1e-3, atol=1e-6)


def test_kmeans_keeps_a_centre_without_maps():
    maps = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]]
    centres = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 9, 9]], np.float32)
    np.testing.assert_array_equal(kmeans(maps, centres), centres)


def test_a_solver_is_an_entry_and_a_module(monkeypatch):
    """The dummy's proposals are the first and the last map: it finds two segments."""
    dummy = types.ModuleType("solvers_of_tests")
    dummy.solve = lambda source, config, seeds=None: source.rows(
        np.array([0, source.n - 1]), np.empty((2, source.n), np.float32)
    )
    monkeypatch.setitem(sys.modules, dummy.__name__, dummy)
    entries = (*SOLVERS, Solver("ends", dummy.__name__, "of tests"))
    monkeypatch.setattr("runtime.merge.registry.SOLVERS", entries)
    pyramid = [np.kron(np.eye(2), np.full((32, 32), 1 / 32)).astype(np.float32)]  # the upper half, and the lower
    labels = segment_attention(pyramid, MergeConfig(grid=4, solver="ends"), size=(8, 8))
    np.testing.assert_array_equal(labels, np.repeat([0, 1], 32).reshape(8, 8))
    proposals = merge_attention(pyramid[0], MergeConfig(grid=4, solver="ends"), (8, 8))
    np.testing.assert_allclose(proposals, pyramid[0][[0, -1]], rtol=1e-6)
    assert split_refine("ends") == ("ends", ())
    with pytest.raises(ValueError, match="refine: expected one solver at most, found kmeans, ends; choose one"):
        split_refine("kmeans,ends")
    with pytest.raises(
        ValueError, match="solver: expected 'merge', 'kmeans', 'ncut', 'kcut' or 'ends', found 'middle'; choose one"
    ):
        segment_attention(pyramid, MergeConfig(grid=4, solver="middle"), size=(8, 8))


def test_an_unknown_solver_is_refused_before_anything_runs():
    message = "solver: expected 'merge', 'kmeans', 'ncut' or 'kcut', found 'crf'; choose one"
    config = MergeConfig(grid=2, solver="crf")
    pyramid = [np.eye(16, dtype=np.float32)]
    for merge in (
        lambda: segment_attention(pyramid, config, size=(8, 8)),
        lambda: propose(pyramid, config),
        lambda: merge_attention(pyramid[0], config, (4, 4)),
    ):
        with pytest.raises(ValueError, match=message):
            merge()
    engine = types.SimpleNamespace(spec=types.SimpleNamespace(levels=()), flips=False)  # never asked for anything else
    with pytest.raises(DiffSegError, match=message):
        HostRoute(engine, config)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(
        "runtime.merge.registry.SOLVERS",
        (*SOLVERS, Solver("ends", "nowhere.ends", "of tests", packages=("no_such_package",))),
    )
    with pytest.raises(ValueError, match="solver: 'ends' needs the package no_such_package, which is not installed"):
        segment_attention([np.eye(16)], MergeConfig(grid=2, solver="ends"), size=(8, 8))


def test_every_entry_names_a_function():
    for solver in SOLVERS:
        assert callable(solver.load())


def test_two_options_name_one_solver():
    assert split_refine("none", "ncut") == split_refine("ncut") == split_refine("ncut", "ncut") == ("ncut", ())
    assert split_refine("snap", "kmeans") == ("kmeans", ("snap",))
    with pytest.raises(ValueError, match="refine: expected no other solver than 'ncut', found kmeans; leave one out"):
        split_refine("kmeans,snap", "ncut")


def test_numbers_of_another_solver_are_refused():
    pyramid = [np.eye(16, dtype=np.float32)]
    for options in ({"tau": 0.3}, {"tau": 0.5, "solver": "kcut"}, {"alpha": 3, "solver": "kmeans"}):
        with pytest.raises(ValueError, match=r"(tau|alpha): belongs to .*ncut.*, found the solver '\w+'; choose"):
            segment_attention(pyramid, MergeConfig(grid=2, **options), size=(8, 8))
    with pytest.raises(DiffSegError, match="tau: belongs to ncut, found the solver 'merge'; choose one of them"):
        Segmenter.open(device="cpu", tau=0.3)

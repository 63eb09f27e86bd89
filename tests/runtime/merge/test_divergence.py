"""D and its clamp, which one module defines."""

import ast
from pathlib import Path

import numpy as np
import pytest

from runtime.merge.divergence import SMALLEST_PROBABILITY, divergences, logarithm
from tests.runtime.merge.plain import plain_divergence

ROOT = Path(__file__).parents[3]


def maps_with_zeros(count, n, seed):
    maps = np.random.default_rng(seed).dirichlet(np.full(n, 0.2), count)
    maps[:, ::5] = 0
    return maps / maps.sum(1, keepdims=True)


@pytest.mark.parametrize(("dtype", "error"), [(np.float64, 1e-12), (np.float32, 1e-4)])
@pytest.mark.parametrize("total", [1.0, 48.0, 7.0])
def test_products_equal_the_formula(dtype, error, total):
    a, b = maps_with_zeros(9, 48, 0), maps_with_zeros(5, 48, 1)
    expected = np.array([[plain_divergence(x, y) for y in b] for x in a])
    found = divergences((total * a).astype(dtype), (total * b).astype(dtype), total=total)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=error, atol=error)
    own = divergences((total * a).astype(dtype), total=total)
    np.testing.assert_allclose(own, [[plain_divergence(x, y) for y in a] for x in a], rtol=error, atol=error)
    assert not np.diagonal(own).any() and np.array_equal(own, own.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logarithm_is_clamped_and_exact(dtype):
    maps = np.geomspace(1e-14, 100, 4096).reshape(4, 1024).astype(dtype)
    given = maps.copy()
    expected = np.log(np.maximum(maps.astype(np.float64), 1024 * SMALLEST_PROBABILITY))
    np.testing.assert_allclose(logarithm(maps), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(maps, given)
    into = np.empty((4, 2, 1024), dtype)  # strided by rows, as the merge uses it
    logarithm(np.maximum(maps, dtype(1e-3)), into[:, 1])
    np.testing.assert_allclose(into[:, 1], np.log(np.maximum(maps, 1e-3)), rtol=1e-6, atol=1e-7)


def test_no_other_module_of_the_runtime_or_the_checks_takes_logarithms_of_maps():
    """A second D, or a second clamp, would begin with one."""
    allowed = {
        "runtime/merge/divergence.py",
        "runtime/merge/iterations.py",  # of blocks, for the screening
        "export/check/maps.py",  # KL of an engine's rows, with the same clamp
    }
    for folder in ("runtime", "export/check"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            calls = [
                node
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute) and node.attr in ("log", "log2") and ast.unparse(node.value) == "np"
            ]
            assert not calls or path.relative_to(ROOT).as_posix() in allowed, path

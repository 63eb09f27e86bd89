"""The products that the benchmark counts are all that the merge computes."""

import ast
from pathlib import Path

import numpy as np

from tools.benchmark.products import multiply, products_ratio, record_products

ROOT = Path(__file__).parents[3]


def test_shapes_strides_and_operations():
    a, b = np.ones((6, 10), np.float32), np.ones((4, 10, 2), np.float32)[:, :, 0]
    stack = np.ones((3, 10, 5), np.float32)
    operands = record_products(lambda: (np.matmul(a, b.T), np.matmul(a, stack)))
    assert [(x.shape, y.shape, found.shape) for x, y, found in operands] == [
        ((6, 10), (10, 4), (6, 4)),
        ((6, 10), (3, 10, 5), (3, 6, 5)),
    ]
    assert operands[0][1].strides == b.T.strides
    multiply(operands)
    x, y, found = operands[1]
    np.testing.assert_allclose(found, x @ y, rtol=1e-6)


def test_ratio_of_a_merge():
    maps = np.random.default_rng(0).dirichlet(np.full(256, 0.3), 256).astype(np.float32)
    found = products_ratio([maps], (1e6,), (64, 64), repeat=1)
    # Nothing is too far: all 256 anchors with all 256 maps, twice for D and once for the means; and the screening.
    products = 3 * 2 * 256**3 + 2 * 256 * 256 * (2 * 64 + 2)
    assert found["gflop"] * 1e9 == products
    assert found["ratio"] == found["total_ms"] / found["products_ms"] > 0


def test_the_merge_has_no_product_that_is_not_seen():
    """Only calls of numpy.matmul are recorded."""
    for path in (ROOT / "runtime" / "merge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.MatMult), f"{path}: write np.matmul"
            assert not (isinstance(node, ast.Attribute) and node.attr in ("dot", "inner", "tensordot")), path

"""The Jensen–Shannon divergence by its definition, and the merge by it."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from runtime.merge.proposals import merge_attention
from runtime.pyramid.config import MergeConfig
from tools.evaluate.divergence import jensen_shannon, merge_jensen_shannon


def test_jensen_shannon_by_its_definition():
    draw = np.random.default_rng(1)
    maps = draw.dirichlet(np.full(64, 0.3), 64).astype(np.float32)
    expected = [jensenshannon(maps[0], other) ** 2 for other in maps]
    assert jensen_shannon(maps[0], maps) == pytest.approx(expected, abs=2e-6)
    # Two groups of maps far apart: any similarity merges them alike.
    groups = np.repeat(draw.dirichlet(np.full(64, 0.1), 2), 32, 0).astype(np.float32)
    assert np.allclose(
        merge_jensen_shannon(groups, (8, 8), 4, (0.1, 0.1)),
        merge_attention(groups, MergeConfig((0.4, 0.4), 4), (8, 8)),
        atol=1e-6,
    )

"""Parameters of the merge."""

import dataclasses
import re

import numpy as np
import pytest

from runtime.pyramid.config import MergeConfig


def test_config_is_a_value():
    config = MergeConfig([1, 0.5], np.int64(8), weights=[2, 1])
    assert config == MergeConfig((1.0, 0.5), 8, (2.0, 1.0))
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.grid = 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": ()}, "at least one, found ()"),
        ({"thresholds": (1.0, -1.0)}, "found (1.0, -1.0)"),
        ({"thresholds": (float("nan"),)}, "finite number above 0"),
        ({"thresholds": 1.1}, "found 1.1"),
        ({"grid": 1}, "at least 2, found 1"),
        ({"grid": 2.5}, "whole number of anchors"),
        ({"grid": True}, "found True"),
        ({"weights": "equal"}, "found 'equal'; choose one"),
        ({"weights": (0.0, 0.0)}, "not all 0"),
        ({"weights": (1.0, -1.0)}, "not negative"),
        ({"weights": ()}, "found ()"),
        ({"weights": None}, "found None"),
        ({"solver": ""}, "solver: expected a solver's name, found ''"),
        ({"solver": None}, "found None; give for example 'merge'"),
        ({"tau": 0, "solver": "ncut"}, "tau: expected a finite number above 0 and at most 2, found 0; give"),
        ({"tau": 2.1, "solver": "ncut"}, "tau: expected a finite number above 0 and at most 2, found 2.1; give"),
        (
            {"alpha": float("nan"), "solver": "ncut"},
            "alpha: expected a finite number above 0 and at most 1000, found nan; give",
        ),
        (
            {"alpha": True, "solver": "ncut"},
            "alpha: expected a finite number above 0 and at most 1000, found True; give",
        ),
    ],
)
def test_config_errors(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MergeConfig(**arguments)
